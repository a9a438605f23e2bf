//! One output that the tasks of a region write in parts.

use std::marker::PhantomData;

/// A slice whose disjoint parts are written by several threads.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint parts; `T: Send` lets a part be written by another thread.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) const fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// `len` values from `at` on.
    ///
    /// # Safety
    /// No other part that overlaps this one may be in use at the same time.
    ///
    /// # Panics
    /// When the part is not inside the slice.
    #[allow(clippy::mut_from_ref)] // that is the point
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(
            at <= self.len && len <= self.len - at,
            "{len} values at {at} of {}",
            self.len
        );
        // SAFETY: in bounds, as just checked, and not aliased, as promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
