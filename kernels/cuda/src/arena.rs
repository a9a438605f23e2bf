//! Scratch memory of a pass: taken piece by piece, given back all at once.

use std::cell::{Cell, RefCell};

use crate::{Buffer, CudaError, Device, Element, Slice};

/// Pieces start at multiples of this, as allocations do.
const ALIGNMENT: usize = 256;

/// Device memory that is handed out in order. Blocks stay for the next pass, so that addresses repeat and nothing is allocated while tokens are decoded.
#[derive(Debug, Default)]
pub struct Arena {
    blocks: RefCell<Vec<Buffer<u8>>>,
    at: Cell<Mark>,
}

/// How far an arena was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    block: usize,
    offset: usize,
}

impl Arena {
    /// Smallest block asked from the device, in bytes.
    const BLOCK: usize = 16 << 20;
    /// Bytes that the first pass takes at least.
    pub const FIRST: usize = Self::BLOCK;

    /// `len` elements of undefined content.
    ///
    /// # Errors
    /// When the device has no room for another block.
    pub fn take<T: Element>(&self, device: &Device, len: usize) -> Result<Slice<'_, T>, CudaError> {
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
            blocks.push(device.allocate("scratch", bytes.max(Self::BLOCK))?);
        }
        self.at.set(Mark {
            block,
            offset: offset + bytes,
        });
        Ok(Slice::at(blocks[block].all().address() + offset as u64, len))
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Arena::take`], and when the copy fails.
    pub fn upload<T: Element>(&self, device: &Device, values: &[T]) -> Result<Slice<'_, T>, CudaError> {
        let slice = self.take(device, values.len())?;
        device.write(values, slice)?;
        Ok(slice)
    }

    /// Where the arena stands.
    pub const fn mark(&self) -> Mark {
        self.at.get()
    }

    /// Gives back what was taken since `mark`: slices taken since then must not be used any more. Kernels run in order, so work that was
    /// submitted with them is not disturbed.
    pub fn release(&self, mark: Mark) {
        self.at.set(mark);
    }

    /// Bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.borrow().iter().map(Buffer::len).sum()
    }
}
