//! Device memory.

use std::marker::PhantomData;
use std::ops::Range;

use cudarc::driver::CudaSlice;

use crate::CudaError;
use crate::error::check;

/// A number as kernels see it: plain bytes, any of which is a value.
///
/// # Safety
/// Every bit pattern must be a value.
pub unsafe trait Element: Copy + Default + Send + Sync + 'static {}

// SAFETY: numbers without invalid patterns.
unsafe impl Element for u8 {}
// SAFETY: as above.
unsafe impl Element for i8 {}
// SAFETY: as above.
unsafe impl Element for u16 {}
// SAFETY: as above.
unsafe impl Element for u32 {}
// SAFETY: as above.
unsafe impl Element for u64 {}
// SAFETY: as above.
unsafe impl Element for i32 {}
// SAFETY: as above.
unsafe impl Element for f32 {}

/// An allocation of some elements.
#[derive(Debug)]
pub struct Buffer<T> {
    /// Keeps the memory; the address stays the same for its life.
    _bytes: CudaSlice<u8>,
    address: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    pub(crate) const fn new(bytes: CudaSlice<u8>, address: u64, len: usize) -> Self {
        Self {
            _bytes: bytes,
            address,
            len,
            of: PhantomData,
        }
    }

    /// All of it.
    #[must_use]
    pub const fn all(&self) -> Slice<'_, T> {
        Slice {
            address: self.address,
            len: self.len,
            of: PhantomData,
        }
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Some elements on the device: an address and a length, valid as long as what it borrows from. Kernels run in the order of their launches, so a slice may be
/// read and written in turn.
#[derive(Debug)]
pub struct Slice<'a, T> {
    address: u64,
    len: usize,
    of: PhantomData<&'a T>,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl<'a, T: Element> Slice<'a, T> {
    /// `len` elements at `address`, borrowed from what the caller holds.
    pub(crate) const fn at(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            of: PhantomData,
        }
    }

    /// The device address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// When the range is not within the slice, as for a slice on the host.
    #[must_use]
    pub fn range(self, range: Range<usize>) -> Slice<'a, T> {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "elements {range:?} of {}",
            self.len
        );
        Slice::at(self.address + (range.start * size_of::<T>()) as u64, range.len())
    }

    /// The same memory as elements of another type.
    ///
    /// # Panics
    /// When the bytes are no whole number of them or start off their alignment.
    #[must_use]
    pub fn cast<U: Element>(self) -> Slice<'a, U> {
        let bytes = self.len * size_of::<T>();
        let fits =
            bytes.is_multiple_of(size_of::<U>()) && self.address.is_multiple_of(align_of::<U>() as u64);
        assert!(
            fits,
            "{bytes} bytes at {:#x} as elements of {} bytes",
            self.address,
            size_of::<U>()
        );
        Slice::at(self.address, bytes / size_of::<U>())
    }

    /// The slice, when it has exactly `len` elements.
    pub(crate) fn exactly(
        self,
        operation: &'static str,
        field: &'static str,
        len: usize,
    ) -> Result<Self, CudaError> {
        check(operation, field, len, self.len).map(|()| self)
    }
}
