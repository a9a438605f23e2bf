//! Blocks of every format as signed bytes, and the numbers that these are multiplied with.

use std::arch::aarch64::*;
use std::array::from_fn;

use ds4_kernels::E2M1_DOUBLED;
use ds4_kernels::grid::GRID;

use super::bytes::{array, bits, eights, halves, load16, load32, signed, word, zeros};
use crate::q4_k;

/// Rows whose numbers are read at once.
pub(super) const FOUR: usize = 4;

/// A format, in blocks of `BYTES` bytes. As `ds4_kernels::block::Block`, but that a code is multiplied with its step later where the
/// product is no byte.
pub(super) trait Weights<const BYTES: usize> {
    /// Groups of 32 values of a block.
    const GROUPS: usize;
    /// Each group's integer is multiplied with a step.
    const STEPS: bool = false;
    /// Each 16 values have a minimum.
    const MINIMUMS: bool = false;

    /// The steps of a block, where there are some: of its groups, or of those values that are multiplied at once.
    type Steps: Copy;

    fn steps(block: &[u8; BYTES]) -> Self::Steps;

    /// What the integer of a group is multiplied with.
    fn step(_steps: &Self::Steps, _group: usize) -> i32 {
        1
    }

    /// The 32 values of a group.
    fn group(block: &[u8; BYTES], steps: &Self::Steps, group: usize) -> [int8x16_t; 2];

    /// The scales of a block of four rows.
    fn scales(blocks: &[&[u8; BYTES]; FOUR]) -> float32x4_t;

    /// The minimums of a block's 16 times 16 values.
    fn minimums(_block: &[u8; BYTES]) -> int8x16_t {
        zeros()
    }

    /// The scales of the minimums of a block of four rows.
    fn minimum_scales(blocks: &[&[u8; BYTES]; FOUR]) -> float32x4_t {
        Self::scales(blocks)
    }
}

pub(super) struct Q8_0;
pub(super) struct Mxfp4;
pub(super) struct Q2K;
pub(super) struct Q4K;
pub(super) struct Iq2Xxs;

impl Weights<34> for Q8_0 {
    const GROUPS: usize = 1;

    type Steps = ();

    #[inline(always)]
    fn steps(_block: &[u8; 34]) {}

    #[inline(always)]
    fn group(block: &[u8; 34], _steps: &(), _group: usize) -> [int8x16_t; 2] {
        load32(block, 2).map(signed)
    }

    #[inline(always)]
    fn scales(blocks: &[&[u8; 34]; FOUR]) -> float32x4_t {
        halves(blocks, 0)
    }
}

impl Weights<17> for Mxfp4 {
    const GROUPS: usize = 1;

    type Steps = ();

    #[inline(always)]
    fn steps(_block: &[u8; 17]) {}

    #[inline(always)]
    fn group(block: &[u8; 17], _steps: &(), _group: usize) -> [int8x16_t; 2] {
        let both = load16(block, 1);
        // SAFETY: NEON is there on every target of this module; the table has 16 bytes.
        unsafe {
            let table = vld1q_s8(E2M1_DOUBLED.as_ptr());
            let low = vandq_u8(both, vdupq_n_u8(15));
            [low, vshrq_n_u8::<4>(both)].map(|codes| vqtbl1q_s8(table, codes))
        }
    }

    /// As [`ds4_kernels::half_of_power`].
    #[inline(always)]
    fn scales(blocks: &[&[u8; 17]; FOUR]) -> float32x4_t {
        let exponents: [u32; FOUR] = from_fn(|row| u32::from(blocks[row][0]));
        // SAFETY: NEON is there on every target of this module; the array has four values.
        unsafe {
            let exponents = vld1q_u32(exponents.as_ptr());
            let normal = vshlq_n_u32::<23>(vsubq_u32(exponents, vdupq_n_u32(1)));
            // 0 and 1 stand for subnormals: bits 21 and 22.
            let subnormal = vshlq_u32(vdupq_n_u32(1 << 21), vreinterpretq_s32_u32(exponents));
            let small = vcltq_u32(exponents, vdupq_n_u32(2));
            vreinterpretq_f32_u32(vbslq_u32(small, subnormal, normal))
        }
    }
}

impl Weights<84> for Q2K {
    const GROUPS: usize = 8;
    const MINIMUMS: bool = true;

    type Steps = [i8; 16];

    /// Of 16 values each.
    #[inline(always)]
    fn steps(block: &[u8; 84]) -> [i8; 16] {
        // SAFETY: NEON is there on every target of this module.
        array(signed(unsafe { vandq_u8(load16(block, 0), vdupq_n_u8(15)) }))
    }

    /// Codes times their steps: at most 3 * 15.
    #[inline(always)]
    fn group(block: &[u8; 84], steps: &[i8; 16], group: usize) -> [int8x16_t; 2] {
        let fours = load32(block, 16 + group / 4 * 32);
        from_fn(|i| {
            // SAFETY: NEON is there on every target of this module.
            unsafe {
                vmulq_s8(
                    bits(fours[i], 2 * (group % 4), 3),
                    vdupq_n_s8(steps[2 * group + i]),
                )
            }
        })
    }

    #[inline(always)]
    fn scales(blocks: &[&[u8; 84]; FOUR]) -> float32x4_t {
        halves(blocks, 80)
    }

    #[inline(always)]
    fn minimums(block: &[u8; 84]) -> int8x16_t {
        // SAFETY: NEON is there on every target of this module.
        signed(unsafe { vshrq_n_u8::<4>(load16(block, 0)) })
    }

    #[inline(always)]
    fn minimum_scales(blocks: &[&[u8; 84]; FOUR]) -> float32x4_t {
        halves(blocks, 82)
    }
}

impl Weights<144> for Q4K {
    const GROUPS: usize = 8;
    const STEPS: bool = true;
    const MINIMUMS: bool = true;

    type Steps = [u8; 8];

    #[inline(always)]
    fn steps(block: &[u8; 144]) -> [u8; 8] {
        q4_k::scales(block).0.to_le_bytes()
    }

    #[inline(always)]
    fn step(steps: &[u8; 8], group: usize) -> i32 {
        i32::from(steps[group])
    }

    #[inline(always)]
    fn group(block: &[u8; 144], _steps: &[u8; 8], group: usize) -> [int8x16_t; 2] {
        load32(block, 16 + group / 2 * 32).map(|two| bits(two, 4 * (group % 2), 15))
    }

    #[inline(always)]
    fn scales(blocks: &[&[u8; 144]; FOUR]) -> float32x4_t {
        halves(blocks, 0)
    }

    /// One minimum to 32 values is the same to both of their 16.
    #[inline(always)]
    fn minimums(block: &[u8; 144]) -> int8x16_t {
        // SAFETY: NEON is there on every target of this module.
        unsafe {
            let eight = vcreate_s8(q4_k::scales(block).1);
            vcombine_s8(vzip1_s8(eight, eight), vzip2_s8(eight, eight))
        }
    }

    #[inline(always)]
    fn minimum_scales(blocks: &[&[u8; 144]; FOUR]) -> float32x4_t {
        halves(blocks, 2)
    }
}

impl Weights<66> for Iq2Xxs {
    const GROUPS: usize = 8;
    const STEPS: bool = true;

    type Steps = [u8; 8];

    /// Twice the upper half of each eighth byte, and one.
    #[inline(always)]
    fn steps(block: &[u8; 66]) -> [u8; 8] {
        let bytes = uint8x16x4_t(
            load16(block, 2),
            load16(block, 18),
            load16(block, 34),
            load16(block, 50),
        );
        // SAFETY: NEON is there on every target of this module; the array has eight bytes.
        unsafe {
            let eighths = vqtbl4_u8(bytes, vcreate_u8(0x3f37_2f27_1f17_0f07));
            let odd = vorr_u8(
                vadd_u8(vshr_n_u8::<4>(eighths), vshr_n_u8::<4>(eighths)),
                vdup_n_u8(1),
            );
            let mut steps = [0; 8];
            vst1_u8(steps.as_mut_ptr(), odd);
            steps
        }
    }

    #[inline(always)]
    fn step(steps: &[u8; 8], group: usize) -> i32 {
        i32::from(steps[group])
    }

    /// Four indices of eight magnitudes, and four times seven bits of signs.
    #[inline(always)]
    fn group(block: &[u8; 66], _steps: &[u8; 8], group: usize) -> [int8x16_t; 2] {
        let bits = u64::from(word(block, 2 + 8 * group)) | u64::from(word(block, 6 + 8 * group)) << 32;
        let magnitudes = |i: usize| &GRID[(bits >> (8 * i) & 255) as usize];
        let signs = |i: usize| &SIGNS[(bits >> (32 + 7 * i) & 127) as usize];
        from_fn(|i| {
            // SAFETY: NEON is there on every target of this module.
            unsafe {
                let magnitudes = eights(magnitudes(2 * i), magnitudes(2 * i + 1));
                vmulq_s8(magnitudes, eights(signs(2 * i), signs(2 * i + 1)))
            }
        })
    }

    /// The step is an odd integer; an eighth completes the scale.
    #[inline(always)]
    fn scales(blocks: &[&[u8; 66]; FOUR]) -> float32x4_t {
        // SAFETY: NEON is there on every target of this module.
        unsafe { vmulq_n_f32(halves(blocks, 0), 0.125) }
    }
}

/// What the magnitudes of eight values are multiplied with, by their seven stored bits.
static SIGNS: [[i8; 8]; 128] = all_signs();

const fn all_signs() -> [[i8; 8]; 128] {
    let mut table = [[1; 8]; 128];
    let mut i = 0;
    while i < 128 * 8 {
        if ds4_kernels::grid::signs((i / 8) as u32) >> (i % 8) & 1 == 1 {
            table[i / 8][i % 8] = -1;
        }
        i += 1;
    }
    table
}
