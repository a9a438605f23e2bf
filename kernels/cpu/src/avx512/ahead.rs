//! Memory is asked for the next rows while those at hand are unpacked and multiplied.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::operands::{ROWS, Rows};

/// Shares of a group of 32 values that each half of the rows asks for while it is unpacked, and the first tile after that: as their times
/// are with eight tokens, so that memory never waits.
pub(super) const OF_HALF: usize = 1;
pub(super) const OF_TILE: usize = 2;
const SHARES: usize = 2 * OF_HALF + OF_TILE;
/// Bytes that memory brings at once.
const LINE: usize = 64;

/// What is still to be asked for.
pub(super) struct Ahead {
    /// Need not be mapped.
    next: *const u8,
    /// Bytes of a share.
    share: usize,
}

impl Ahead {
    /// What follows `rows` in memory, as much again.
    pub(super) fn of(rows: &Rows<'_>) -> Self {
        let bytes = ROWS * rows.row(0).len();
        Self {
            next: rows.row(0).as_ptr().wrapping_add(bytes),
            share: bytes / (rows.cols() / 32 * SHARES),
        }
    }

    /// Nothing: another tile of the same rows has asked.
    pub(super) const fn nothing() -> Self {
        Self {
            next: std::ptr::null(),
            share: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(super) fn ask(&mut self, shares: usize) {
        let bytes = shares * self.share;
        for at in (0..bytes).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T1>(self.next.wrapping_add(at).cast());
        }
        self.next = self.next.wrapping_add(bytes);
    }
}
