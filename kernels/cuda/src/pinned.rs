//! Host memory that copies reach while the host goes on.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use crate::{CudaError, Device};

/// Page-locked bytes.
pub(crate) struct Pinned {
    context: Arc<CudaContext>,
    address: *mut u8,
    len: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}
// SAFETY: as above; it is written under an exclusive borrow only.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: no flags: memory that the host reads at full speed (write-combined memory would not be).
        let address = unsafe { result::malloc_host(len, 0) }.map_err(CudaError::of("cuMemHostAlloc"))?;
        // SAFETY: `len` bytes that are ours; none may be read that was not written.
        unsafe { address.cast::<u8>().write_bytes(0, len) };
        Ok(Self {
            context: device.context().clone(),
            address: address.cast(),
            len,
        })
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Some of it. Who lets the device write there waits before this.
    pub(crate) fn part(&self, range: Range<usize>) -> &[u8] {
        self.check(&range);
        // SAFETY: ours, written when it was made, and within it.
        unsafe { std::slice::from_raw_parts(self.address.add(range.start), range.len()) }
    }

    /// Some of it. Who lets the device read or write there waits before this.
    pub(crate) fn part_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.check(&range);
        // SAFETY: as above, under an exclusive borrow.
        unsafe { std::slice::from_raw_parts_mut(self.address.add(range.start), range.len()) }
    }

    fn check(&self, range: &Range<usize>) {
        let within = range.start <= range.end && range.end <= self.len;
        assert!(within, "bytes {range:?} of {}", self.len);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated above, and nobody borrows it. A failure leaks it.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned bytes", self.len)
    }
}
