//! Memory of values that live for a moment, as those between two products do: taken again and again, and never cleared.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values of a cache line, where every buffer begins: registers of 64 bytes are loaded and stored in one piece.
const LINE: usize = 64 / size_of::<f32>();
/// Memory so many times as large as what is asked for is left to others.
const SLACK: usize = 2;

/// Memory that is free.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<f32>>>);

/// Some values; their memory goes back when they are dropped.
pub struct Buffer<'a> {
    memory: Vec<f32>,
    start: usize,
    len: usize,
    home: &'a Buffers,
}

impl Buffers {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// `len` values to be written before they are read: they are what was left there. Where assertions are checked they are no numbers.
    #[must_use]
    pub fn take(&self, len: usize) -> Buffer<'_> {
        let room = len + LINE;
        let mut memory = self.smallest(room).unwrap_or_else(|| vec![0.0; room]);
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        if cfg!(debug_assertions) {
            memory.fill(f32::NAN);
        }
        Buffer {
            memory,
            start,
            len,
            home: self,
        }
    }

    /// Gives all free memory back to the system.
    pub fn clear(&self) {
        self.free().clear();
    }

    fn smallest(&self, room: usize) -> Option<Vec<f32>> {
        let mut free = self.free();
        let fits = |memory: &Vec<f32>| (room..=SLACK * room).contains(&memory.len());
        let places = (0..free.len()).filter(|at| fits(&free[*at]));
        let at = places.min_by_key(|at| free[*at].len())?;
        Some(free.swap_remove(at))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.free().push(memory);
    }
}

impl Deref for Buffer<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free buffers", self.free().len())
    }
}

impl fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_again_by_what_needs_most_of_it() {
        let buffers = Buffers::new();
        let first = buffers.take(1000);
        let place = first.memory.as_ptr();
        assert_eq!(place.wrapping_add(first.start), first.as_ptr());
        assert!(first.as_ptr().addr().is_multiple_of(64) && first.len() == 1000);
        drop(first);
        assert_ne!(buffers.take(10).memory.as_ptr(), place, "far too large");
        let (again, other) = (buffers.take(900), buffers.take(900));
        assert_eq!(again.memory.as_ptr(), place);
        assert_ne!(other.memory.as_ptr(), place, "in use");
        drop((again, other));
        assert_eq!(format!("{buffers:?}"), "3 free buffers");
        buffers.clear();
        assert_eq!(format!("{buffers:?}"), "0 free buffers");
    }

    #[test]
    #[cfg(debug_assertions)]
    fn what_was_left_there_is_not_mistaken_for_a_result() {
        let buffers = Buffers::new();
        buffers.take(8).fill(1.0);
        assert!(buffers.take(8).iter().all(|x| x.is_nan()));
    }
}
