//! Rows times one token or a few, straight from the file: nothing is unpacked to memory.
//!
//! Four rows go side by side, block after block, so that the integers of a block are the lanes of the fused multiply-adds.

use std::arch::aarch64::*;
use std::array::from_fn;

use ds4_kernels::Format;
use ds4_kernels::block::GROUP;

use super::multiply::sdot;
use super::weights::{FOUR, Iq2Xxs, Mxfp4, Q2K, Q4K, Q8_0, Weights};
use crate::operands::{Put, ROWS, Rows, Token};

/// Tokens that share the unpacking of a block.
pub(super) const MOST: usize = 3;

/// The products of the rows with up to [`MOST`] tokens.
#[target_feature(enable = "dotprod")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    match *tokens {
        [a] => of_tokens(rows, &[a], put),
        [a, b] => of_tokens(rows, &[a, b], put),
        [a, b, c] => of_tokens(rows, &[a, b, c], put),
        _ => unreachable!("{} tokens at once, at most {MOST}", tokens.len()),
    }
}

#[target_feature(enable = "dotprod")]
fn of_tokens<const T: usize>(rows: &Rows<'_>, tokens: &[Token<'_>; T], put: Put<'_>) {
    let values = match rows.format() {
        Format::Q8_0 => of_format::<Q8_0, 34, T>(rows, tokens),
        Format::Mxfp4 => of_format::<Mxfp4, 17, T>(rows, tokens),
        Format::Q2K => of_format::<Q2K, 84, T>(rows, tokens),
        Format::Q4K => of_format::<Q4K, 144, T>(rows, tokens),
        Format::Iq2Xxs => of_format::<Iq2Xxs, 66, T>(rows, tokens),
        format => unreachable!("{format} has no 8-bit activations"),
    };
    values.iter().enumerate().for_each(|(i, values)| put(i, values));
}

/// Block after block as `ds4_kernels::block::Block::accumulate`: one fused multiply-add for the weights and one for the minimums.
#[target_feature(enable = "dotprod")]
fn of_format<W: Weights<BYTES>, const BYTES: usize, const T: usize>(
    rows: &Rows<'_>,
    tokens: &[Token<'_>; T],
) -> [[f32; ROWS]; T] {
    let (mut out, count) = ([[0.0; ROWS]; T], rows.blocks());
    tokens
        .iter()
        .for_each(|token| token.check(rows.cols(), 32 * W::GROUPS));
    for first in (0..rows.count()).step_by(FOUR) {
        let rows = rows.blocks_of::<FOUR, BYTES>(first);
        let mut totals = [vdupq_n_f32(0.0); T];
        assert!(rows.iter().all(|row| row.len() == count));
        for at in 0..count {
            // SAFETY: all rows have `count` blocks, as asserted, and all tokens as many scales.
            let (blocks, of_tokens): (_, [f32; T]) = unsafe {
                (
                    rows.map(|row| row.get_unchecked(at)),
                    from_fn(|t| *tokens[t].scales.get_unchecked(at)),
                )
            };
            let (dots, scales) = (dots::<W, BYTES, T>(&blocks, tokens, at), W::scales(&blocks));
            for t in 0..T {
                let factor = vmulq_n_f32(scales, of_tokens[t]);
                totals[t] = vfmaq_f32(totals[t], factor, vcvtq_f32_s32(dots[t]));
            }
            if W::MINIMUMS {
                let minimums = minimums::<W, BYTES, T>(&blocks, tokens, at);
                let scales = W::minimum_scales(&blocks);
                let none = vceqzq_f32(scales);
                for t in 0..T {
                    let factor = vmulq_n_f32(scales, of_tokens[t]);
                    let less = vfmsq_f32(totals[t], factor, vcvtq_f32_s32(minimums[t]));
                    totals[t] = vbslq_f32(none, totals[t], less);
                }
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            let out = &mut out[first..first + FOUR];
            // SAFETY: the slice has room for four values.
            unsafe { vst1q_f32(out.as_mut_ptr(), total) };
        }
    }
    out
}

/// The integers of block `at` of four rows with each token.
#[inline]
#[target_feature(enable = "dotprod")]
fn dots<W: Weights<BYTES>, const BYTES: usize, const T: usize>(
    blocks: &[&[u8; BYTES]; FOUR],
    tokens: &[Token<'_>; T],
    at: usize,
) -> [int32x4_t; T] {
    let codes: [&[[i8; 32]]; T] = from_fn(|t| &tokens[t].codes.as_chunks().0[at * W::GROUPS..][..W::GROUPS]);
    let mut lanes = [[vdupq_n_s32(0); FOUR]; T];
    for (row, block) in blocks.iter().enumerate() {
        let steps = W::steps(block);
        let mut of_row = [vdupq_n_s32(0); T];
        for group in 0..W::GROUPS {
            let weights = W::group(block, &steps, group);
            for (of_row, codes) in of_row.iter_mut().zip(codes) {
                let x = codes[group].as_ptr();
                let sum = if W::STEPS { vdupq_n_s32(0) } else { *of_row };
                // SAFETY: this function enables the instruction; 32 codes are there.
                let sum = unsafe {
                    sdot(
                        sdot(sum, weights[0], vld1q_s8(x)),
                        weights[1],
                        vld1q_s8(x.add(16)),
                    )
                };
                *of_row = if W::STEPS {
                    vmlaq_n_s32(*of_row, sum, W::step(&steps, group))
                } else {
                    sum
                };
            }
        }
        lanes
            .iter_mut()
            .zip(of_row)
            .for_each(|(lanes, sum)| lanes[row] = sum);
    }
    lanes.map(|rows| sums(rows))
}

/// The integers of the minimums of block `at` of four rows with each token.
#[inline]
#[target_feature(enable = "dotprod")]
fn minimums<W: Weights<BYTES>, const BYTES: usize, const T: usize>(
    blocks: &[&[u8; BYTES]; FOUR],
    tokens: &[Token<'_>; T],
    at: usize,
) -> [int32x4_t; T] {
    let of_rows = blocks.map(|block| {
        let minimums = W::minimums(block);
        (vmovl_s8(vget_low_s8(minimums)), vmovl_high_s8(minimums))
    });
    from_fn(|t| {
        let group_sums: &[i16; GROUP] = &tokens[t].sums.as_chunks().0[at];
        // SAFETY: 16 sums are there.
        let (x, y) = unsafe {
            (
                vld1q_s16(group_sums.as_ptr()),
                vld1q_s16(group_sums.as_ptr().add(8)),
            )
        };
        sums(of_rows.map(|(low, high)| {
            let sum = vmull_s16(vget_low_s16(low), vget_low_s16(x));
            let sum = vmlal_high_s16(sum, low, x);
            vmlal_high_s16(vmlal_s16(sum, vget_low_s16(high), vget_low_s16(y)), high, y)
        }))
    })
}

/// Lane `i` of the result is the sum over the lanes of register `i`.
#[inline]
#[target_feature(enable = "neon")]
fn sums([a, b, c, d]: [int32x4_t; FOUR]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}
