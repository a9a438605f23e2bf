//! Bytes of blocks in registers.

use std::arch::aarch64::*;
use std::arch::asm;

use super::weights::FOUR;

/// Bits `from` on of every byte, under `mask`.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // below 8
pub(super) fn bits(bytes: uint8x16_t, from: usize, mask: u8) -> int8x16_t {
    // SAFETY: NEON is there on every target of this module.
    signed(unsafe { vandq_u8(vshlq_u8(bytes, vdupq_n_s8(-(from as i8))), vdupq_n_u8(mask)) })
}

/// The halves at byte `at` of a block of four rows, widened.
#[inline(always)]
pub(super) fn halves<const BYTES: usize>(blocks: &[&[u8; BYTES]; FOUR], at: usize) -> float32x4_t {
    let [a, b, c, d] = blocks.map(|block| block[at..at + 2].as_ptr().cast::<u16>());
    // SAFETY: NEON is there on every target of this module; a half is at each address, which needs no alignment.
    unsafe {
        let halves = vld1_lane_u16::<0>(a, vdup_n_u16(0));
        let halves = vld1_lane_u16::<1>(b, halves);
        widen(vld1_lane_u16::<3>(d, vld1_lane_u16::<2>(c, halves)))
    }
}

/// The values of four halves. (The intrinsic is not stable yet.)
#[inline(always)]
pub(super) fn widen(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: an instruction on registers alone, which NEON has.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

#[inline(always)]
pub(super) fn signed(bytes: uint8x16_t) -> int8x16_t {
    // SAFETY: NEON is there on every target of this module.
    unsafe { vreinterpretq_s8_u8(bytes) }
}

#[inline(always)]
pub(super) fn array(bytes: int8x16_t) -> [i8; 16] {
    let mut array = [0; 16];
    // SAFETY: NEON is there on every target of this module; the array has 16 bytes.
    unsafe { vst1q_s8(array.as_mut_ptr(), bytes) };
    array
}

/// Two times eight bytes.
#[inline(always)]
pub(super) fn eights(low: &[i8; 8], high: &[i8; 8]) -> int8x16_t {
    // SAFETY: NEON is there on every target of this module; each has eight bytes.
    unsafe { vcombine_s8(vld1_s8(low.as_ptr()), vld1_s8(high.as_ptr())) }
}

#[inline(always)]
pub(super) fn zeros() -> int8x16_t {
    // SAFETY: NEON is there on every target of this module.
    unsafe { vdupq_n_s8(0) }
}

/// The four bytes from `at` on, the first lowest.
#[inline(always)]
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let part = &bytes[at..at + 4];
    // SAFETY: the slice was just taken; the read needs no alignment.
    u32::from_le(unsafe { part.as_ptr().cast::<u32>().read_unaligned() })
}

/// The 16 bytes from `at` on.
#[inline(always)]
pub(super) fn load16(bytes: &[u8], at: usize) -> uint8x16_t {
    let part = &bytes[at..at + 16];
    // SAFETY: the slice was just taken; the load needs no alignment.
    unsafe { vld1q_u8(part.as_ptr()) }
}

/// The 32 bytes from `at` on.
#[inline(always)]
pub(super) fn load32(bytes: &[u8], at: usize) -> [uint8x16_t; 2] {
    [load16(bytes, at), load16(bytes, at + 16)]
}
