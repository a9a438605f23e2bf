//! Device memory.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::check;
use crate::{Binding, Driver, Memory, MetalError};

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
unsafe impl Element for u32 {}
// SAFETY: as above.
unsafe impl Element for i32 {}
// SAFETY: as above.
unsafe impl Element for f32 {}

/// An allocation of some elements, or bytes of the host.
#[derive(Debug)]
pub struct Buffer<T> {
    driver: Arc<dyn Driver>,
    memory: Memory,
    offset: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.driver.release(&self.memory);
    }
}

impl<T: Element> Buffer<T> {
    pub(crate) fn new(driver: Arc<dyn Driver>, memory: Memory, offset: usize, len: usize) -> Self {
        assert!(
            offset + len * size_of::<T>() <= memory.bytes,
            "a buffer lies within its memory"
        );
        Self {
            driver,
            memory,
            offset,
            len,
            of: PhantomData,
        }
    }

    /// All of it.
    #[must_use]
    pub const fn all(&self) -> Slice<'_, T> {
        Slice {
            memory: self.memory.number,
            base: self.memory.host,
            offset: self.offset,
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

/// Some elements on the device, valid as long as what it borrows from. Kernels run in the order of their launches, so a slice may be read and written in turn.
#[derive(Debug)]
pub struct Slice<'a, T> {
    memory: u32,
    base: NonNull<u8>,
    offset: usize,
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
    /// `len` elements from byte `offset` of other bytes, for a life that the caller vouches for.
    pub(crate) fn within(bytes: Slice<'_, u8>, offset: usize, len: usize) -> Self {
        assert!(
            offset + len * size_of::<T>() <= bytes.len,
            "elements lie within their bytes"
        );
        Self {
            memory: bytes.memory,
            base: bytes.base,
            offset: bytes.offset + offset,
            len,
            of: PhantomData,
        }
    }

    /// How a launch names it.
    pub(crate) const fn binding(self) -> Binding {
        Binding {
            memory: self.memory,
            offset: self.offset,
        }
    }

    /// Where the host sees it.
    pub(crate) fn host(self) -> NonNull<u8> {
        // SAFETY: the offset lies within the memory, which the borrow keeps.
        unsafe { self.base.add(self.offset) }
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
        Slice {
            offset: self.offset + range.start * size_of::<T>(),
            len: range.len(),
            ..self
        }
    }

    /// The same memory as elements of another type.
    ///
    /// # Panics
    /// When the bytes are no whole number of them or start off their alignment.
    #[must_use]
    pub fn cast<U: Element>(self) -> Slice<'a, U> {
        let bytes = self.len * size_of::<T>();
        let fits = bytes.is_multiple_of(size_of::<U>()) && self.offset.is_multiple_of(align_of::<U>());
        assert!(
            fits,
            "{bytes} bytes at {:#x} as elements of {} bytes",
            self.offset,
            size_of::<U>()
        );
        Slice {
            memory: self.memory,
            base: self.base,
            offset: self.offset,
            len: bytes / size_of::<U>(),
            of: PhantomData,
        }
    }

    /// The slice, when it has exactly `len` elements.
    pub(crate) fn exactly(
        self,
        operation: &'static str,
        field: &'static str,
        len: usize,
    ) -> Result<Self, MetalError> {
        check(operation, field, len, self.len).map(|()| self)
    }
}
