//! Many small copies in one launch.

use crate::launch::Shape;
use crate::{Arena, CudaError, Device, Slice};

/// Copies byte ranges within the device, all in one launch.
#[derive(Debug, Default)]
pub struct Segments {
    from: Vec<u64>,
    to: Vec<u64>,
    bytes: Vec<u32>,
}

impl Segments {
    /// Adds a copy.
    ///
    /// # Panics
    /// When the lengths differ or exceed 32 bits.
    pub fn push(&mut self, from: Slice<'_, u8>, to: Slice<'_, u8>) {
        assert_eq!(from.len(), to.len(), "bytes of a segment");
        self.from.push(from.address());
        self.to.push(to.address());
        self.bytes
            .push(u32::try_from(from.len()).expect("a segment is smaller than 4 GiB"));
    }

    /// Copies them, in any order; the memory that was pushed must still be there. The list lies in `arena` until the copies are done.
    ///
    /// # Errors
    /// When there is no room or the launch fails.
    pub fn run(&self, device: &Device, arena: &Arena) -> Result<(), CudaError> {
        let (from, to) = (arena.upload(device, &self.from)?, arena.upload(device, &self.to)?);
        let bytes = arena.upload(device, &self.bytes)?;
        device.copy_segments(
            Shape::blocks(self.bytes.len(), 128),
            from.into(),
            to.into(),
            bytes.into(),
        )
    }
}
