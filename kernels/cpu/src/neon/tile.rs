//! Eight unpacked rows times four tokens, all integers in registers.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, vaddq_s32, vbslq_f32, vceqzq_f32, vcvtq_f32_s32, vdupq_n_s32, vfmaq_f32,
    vfmsq_f32, vld1q_f32, vld1q_s32, vmlaq_s32, vmulq_f32, vshlq_n_s32, vst1q_f32,
};
use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;

use ds4_kernels::Format;

use super::multiply::{Multiply, ROWS, TOKENS, row, token};
use super::part::Part;
use super::tokens::{Few, HIGH_BITS};
use super::weights::{Iq2Xxs, Mxfp4, Q2K, Q4K, Q8_0, Weights};
use crate::operands::{self, Put, Rows, Token};

/// Values of each row that are unpacked at a time: those of all rows take 16 KiB, which with the tokens' stay in the nearest cache (64 KiB on
/// Graviton 2).
const SLICE: usize = 512;
/// Parts of a task's rows.
const PARTS: usize = operands::ROWS / ROWS;

/// The sums of a tile: `[H][N]` registers, of which there are eight at most.
type Sums = [f32; ROWS * TOKENS];

/// What a thread keeps from product to product.
#[derive(Default)]
pub(super) struct Work {
    parts: [Part; PARTS],
    few: Few,
    /// For each tile's tokens, those with each part.
    sums: Vec<[Sums; PARTS]>,
}

/// Lends this thread's memory.
pub(super) fn with_work<R>(use_it: impl FnOnce(&mut Work) -> R) -> R {
    thread_local! {
        static WORK: RefCell<Work> = RefCell::default();
    }
    WORK.with_borrow_mut(use_it)
}

/// The products of the rows with any number of tokens.
///
/// # Safety
/// Inlined into a function that enables the instruction.
#[inline(always)]
pub(super) unsafe fn product<M: Multiply<H>, const H: usize>(
    work: &mut Work,
    rows: &Rows<'_>,
    tokens: &[Token<'_>],
    put: Put<'_>,
) {
    // SAFETY: as the caller promised.
    unsafe {
        match rows.format() {
            Format::Q8_0 => of_format::<M, H, Q8_0, 34>(work, rows, tokens),
            Format::Mxfp4 => of_format::<M, H, Mxfp4, 17>(work, rows, tokens),
            Format::Q2K => of_format::<M, H, Q2K, 84>(work, rows, tokens),
            Format::Q4K => of_format::<M, H, Q4K, 144>(work, rows, tokens),
            Format::Iq2Xxs => of_format::<M, H, Iq2Xxs, 66>(work, rows, tokens),
            format => unreachable!("{format} has no 8-bit activations"),
        }
    }
    for (i, (sums, tokens)) in work.sums.iter().zip(tokens.chunks(TOKENS)).enumerate() {
        for (j, values) in by_token::<M, H>(sums, tokens.len())
            .iter()
            .take(tokens.len())
            .enumerate()
        {
            put(i * TOKENS + j, values);
        }
    }
}

/// The sums of a tile's tokens, row by row.
fn by_token<M: Multiply<H>, const H: usize>(
    sums: &[Sums; PARTS],
    tokens: usize,
) -> [[f32; operands::ROWS]; TOKENS] {
    let n = tokens.div_ceil(M::TOKENS);
    let mut out = [[0.0; operands::ROWS]; TOKENS];
    for (part, sums) in sums.iter().enumerate() {
        for (i, four) in sums.as_chunks::<4>().0.iter().enumerate().take(H * n) {
            for (lane, sum) in four.iter().enumerate() {
                out[token::<M, H>(i % n, lane)][part * ROWS + row::<M, H>(i / n, lane)] = *sum;
            }
        }
    }
    out
}

/// Fills the sums.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn of_format<M: Multiply<H>, const H: usize, W: Weights<BYTES>, const BYTES: usize>(
    work: &mut Work,
    rows: &Rows<'_>,
    tokens: &[Token<'_>],
) {
    let (parts, blocks) = (rows.count().div_ceil(ROWS), rows.blocks());
    for token in tokens {
        token.check(rows.cols(), rows.format().block_len());
    }
    work.sums.clear();
    work.sums
        .resize(tokens.len().div_ceil(TOKENS), [[0.0; ROWS * TOKENS]; PARTS]);
    let step = SLICE / (32 * W::GROUPS);
    for first in (0..blocks).step_by(step) {
        let blocks = first..blocks.min(first + step);
        for (i, part) in work.parts.iter_mut().enumerate().take(parts) {
            part.unpack::<M, H, W, BYTES>(&rows.part_of(i * ROWS, &blocks));
        }
        for (tokens, sums) in tokens.chunks(TOKENS).zip(&mut work.sums) {
            let (parts, few) = (&work.parts[..parts], &mut work.few);
            // SAFETY: as the caller promised.
            unsafe {
                match tokens.len().div_ceil(M::TOKENS) {
                    1 => tiles::<M, H, 1, W, BYTES>(parts, few, tokens, &blocks, sums),
                    2 => tiles::<M, H, 2, W, BYTES>(parts, few, tokens, &blocks, sums),
                    3 if M::TOKENS == 1 => tiles::<M, H, 3, W, BYTES>(parts, few, tokens, &blocks, sums),
                    4 if M::TOKENS == 1 => tiles::<M, H, 4, W, BYTES>(parts, few, tokens, &blocks, sums),
                    n => unreachable!("{n} registers of tokens"),
                }
            }
        }
    }
}

/// A tile of each part.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tiles<M: Multiply<H>, const H: usize, const N: usize, W: Weights<BYTES>, const BYTES: usize>(
    parts: &[Part],
    few: &mut Few,
    tokens: &[Token<'_>],
    blocks: &Range<usize>,
    sums: &mut [Sums; PARTS],
) {
    few.pack::<M, H, N, W, BYTES>(tokens, blocks);
    for (part, sums) in parts.iter().zip(sums) {
        // SAFETY: as the caller promised.
        unsafe { tile::<M, H, N, W, BYTES>(part, few, sums) };
    }
}

/// Adds the products of all blocks to `sums`, block after block as `ds4_kernels::block::Block::accumulate`.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile<M: Multiply<H>, const H: usize, const N: usize, W: Weights<BYTES>, const BYTES: usize>(
    part: &Part,
    few: &Few,
    sums: &mut Sums,
) {
    let (blocks, eights) = (part.blocks, 2 * N * M::TOKENS);
    assert!(part.codes.len() == 2 * blocks * W::GROUPS && part.scales.len() == blocks * H);
    assert!(few.codes.len() == eights * part.codes.len() && few.scales.len() == blocks * N);
    assert!(!W::STEPS || part.steps.len() == blocks * W::GROUPS * H);
    assert!(!W::MINIMUMS || part.minimums.len() == blocks && part.minimum_scales.len() == blocks * H);
    assert!(!W::MINIMUMS || few.sums.len() == 2 * eights * blocks);
    assert!(4 * H * N <= sums.len());
    // SAFETY: as the caller promised; all that is read for a block is there, by the lengths that were asserted.
    unsafe {
        let mut totals = [[vld1q_f32(sums.as_ptr()); N]; H];
        for (h, totals) in totals.iter_mut().enumerate() {
            for (n, total) in totals.iter_mut().enumerate() {
                *total = vld1q_f32(sums.as_ptr().add(4 * (h * N + n)));
            }
        }
        for block in 0..blocks {
            let dots = dots::<M, H, N, W, BYTES>(part, few, block);
            let factors = factors::<H, N>(&part.scales, few, block);
            for h in 0..H {
                for n in 0..N {
                    totals[h][n] = vfmaq_f32(totals[h][n], factors[h][n], vcvtq_f32_s32(dots[h][n]));
                }
            }
            if W::MINIMUMS {
                subtract::<M, H, N>(part, few, block, &mut totals);
            }
        }
        for (h, totals) in totals.iter().enumerate() {
            for (n, total) in totals.iter().enumerate() {
                vst1q_f32(sums.as_mut_ptr().add(4 * (h * N + n)), *total);
            }
        }
    }
}

/// The integers of a block.
///
/// # Safety
/// As [`product`]; the part and the tokens have the block.
#[inline(always)]
unsafe fn dots<M: Multiply<H>, const H: usize, const N: usize, W: Weights<BYTES>, const BYTES: usize>(
    part: &Part,
    few: &Few,
    block: usize,
) -> [[int32x4_t; N]; H] {
    let eights = 2 * N * M::TOKENS;
    // SAFETY: as the caller promised.
    unsafe {
        let mut dots = [[vdupq_n_s32(0); N]; H];
        for group in block * W::GROUPS..(block + 1) * W::GROUPS {
            let mut parts = [[vdupq_n_s32(0); N]; H];
            let into = if W::STEPS { &mut parts } else { &mut dots };
            for step in 2 * group..2 * (group + 1) {
                let codes = few.codes.as_ptr().add(eights * step);
                M::add(part.codes.get_unchecked(step), codes, into);
            }
            if W::STEPS {
                for h in 0..H {
                    let steps = vld1q_s32(part.steps.get_unchecked(group * H + h).as_ptr());
                    for n in 0..N {
                        dots[h][n] = vmlaq_s32(dots[h][n], parts[h][n], steps);
                    }
                }
            }
        }
        dots
    }
}

/// The scales of a block of rows times those of the tokens.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn factors<const H: usize, const N: usize>(
    scales: &[[f32; 4]],
    few: &Few,
    block: usize,
) -> [[float32x4_t; N]; H] {
    // SAFETY: as the caller promised.
    unsafe {
        let of_tokens: [float32x4_t; N] =
            from_fn(|n| vld1q_f32(few.scales.get_unchecked(block * N + n).as_ptr()));
        from_fn(|h| {
            let of_rows = vld1q_f32(scales.get_unchecked(block * H + h).as_ptr());
            of_tokens.map(|of_tokens| vmulq_f32(of_rows, of_tokens))
        })
    }
}

/// The part of the minimums, where there are some: `Block::accumulate` leaves the sum alone where their scale is zero.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn subtract<M: Multiply<H>, const H: usize, const N: usize>(
    part: &Part,
    few: &Few,
    block: usize,
    totals: &mut [[float32x4_t; N]; H],
) {
    let eights = 2 * N * M::TOKENS;
    // SAFETY: as the caller promised.
    unsafe {
        let (mut high, mut low) = ([[vdupq_n_s32(0); N]; H], [[vdupq_n_s32(0); N]; H]);
        let (line, sums) = (
            part.minimums.get_unchecked(block),
            few.sums.as_ptr().add(2 * eights * block),
        );
        M::add(line, sums, &mut high);
        M::add(line, sums.add(eights), &mut low);
        let factors = factors::<H, N>(&part.minimum_scales, few, block);
        for h in 0..H {
            let none = vceqzq_f32(vld1q_f32(
                part.minimum_scales.get_unchecked(block * H + h).as_ptr(),
            ));
            for n in 0..N {
                let minimums = vaddq_s32(vshlq_n_s32::<{ HIGH_BITS as i32 }>(high[h][n]), low[h][n]);
                let less = vfmsq_f32(totals[h][n], factors[h][n], vcvtq_f32_s32(minimums));
                totals[h][n] = vbslq_f32(none, totals[h][n], less);
            }
        }
    }
}
