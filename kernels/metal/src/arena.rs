//! Scratch memory of a pass: taken piece by piece, given back all at once.

use std::cell::{Cell, RefCell};

use crate::{Buffer, Device, Element, MetalError, Slice};

/// Pieces start at multiples of this: what the device wants of a buffer's offset, and whole cache lines.
const ALIGNMENT: usize = 256;
/// Smallest block asked from the device.
const BLOCK: usize = 16 << 20;

/// Device memory that is handed out in order. Blocks stay for the next pass, so that nothing is allocated while tokens are decoded.
///
/// What the host writes lies apart and is not given back before [`Arena::reset`]: launches that read it are done later than the host goes on.
#[derive(Debug, Default)]
pub struct Arena {
    scratch: Region,
    written: Region,
}

/// Blocks, and how far they are used.
#[derive(Debug, Default)]
struct Region {
    blocks: RefCell<Vec<Buffer<u8>>>,
    at: Cell<Mark>,
}

/// How far an arena's scratch was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    block: usize,
    offset: usize,
}

impl Region {
    fn take<'a, T: Element>(&'a self, device: &Device, len: usize) -> Result<Slice<'a, T>, MetalError> {
        let bytes = (len * size_of::<T>()).next_multiple_of(ALIGNMENT);
        let mut blocks = self.blocks.borrow_mut();
        let Mark {
            mut block,
            mut offset,
        } = self.at.get();
        while blocks
            .get(block)
            .is_some_and(|buffer| offset + bytes > buffer.len())
        {
            (block, offset) = (block + 1, 0);
        }
        if block == blocks.len() {
            blocks.push(device.allocate("scratch", bytes.max(BLOCK))?);
        }
        self.at.set(Mark {
            block,
            offset: offset + bytes,
        });
        // Blocks stay where they are for as long as the arena.
        Ok(Slice::within(blocks[block].all(), offset, len))
    }
}

impl Arena {
    /// Bytes that the first pass takes at least.
    pub const FIRST: usize = 2 * BLOCK;

    /// `len` elements of undefined content.
    ///
    /// # Errors
    /// When the device has no room for another block.
    pub fn take<T: Element>(&self, device: &Device, len: usize) -> Result<Slice<'_, T>, MetalError> {
        self.scratch.take(device, len)
    }

    /// A copy of `values`, which stays until [`Arena::reset`].
    ///
    /// # Errors
    /// As [`Arena::take`].
    pub fn upload<T: Element>(&self, device: &Device, values: &[T]) -> Result<Slice<'_, T>, MetalError> {
        let slice = self.written.take(device, values.len())?;
        device.write(values, slice)?;
        Ok(slice)
    }

    /// Where the scratch stands.
    pub const fn mark(&self) -> Mark {
        self.scratch.at.get()
    }

    /// Gives back the scratch that was taken since `mark`: its slices must not be used any more. Kernels run in order, so launches that use them are not
    /// disturbed.
    pub fn release(&self, mark: Mark) {
        self.scratch.at.set(mark);
    }

    /// Gives everything back, once every launch is done.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn reset(&mut self, device: &Device) -> Result<(), MetalError> {
        device.wait()?;
        self.scratch.at.set(Mark::default());
        self.written.at.set(Mark::default());
        Ok(())
    }

    /// Bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |region: &Region| region.blocks.borrow().iter().map(Buffer::len).sum::<usize>();
        of(&self.scratch) + of(&self.written)
    }
}
