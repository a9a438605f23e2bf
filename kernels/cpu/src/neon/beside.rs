//! Rows of `Q8_0` times four to eight tokens that lie beside each other, so that rows are read where they lie.
//!
//! For so few tokens it takes about as long to unpack rows as to multiply them.

use std::arch::aarch64::*;
use std::array::from_fn;

use ds4_kernels::Format;

use super::multiply::{eights, sdot_four, smmla};
use super::weights::{FOUR, Q8_0, Weights};
use crate::beside::{Beside, Line, MOST};
use crate::operands::{Put, ROWS, Rows};

/// The blocks of four rows.
type Blocks<'a> = [&'a [[u8; 34]]; FOUR];
/// The sums of four rows with all tokens.
type Sums = [[f32; MOST]; FOUR];

/// The products of the rows with all tokens.
#[target_feature(enable = "dotprod")]
pub(super) fn product(rows: &Rows<'_>, tokens: &Beside, put: Put<'_>) {
    let four = |rows: &Blocks<'_>| match tokens.count.div_ceil(4) {
        1 => four::<1>(rows, &tokens.lines),
        _ => four::<2>(rows, &tokens.lines),
    };
    by_fours(rows, tokens, four, put);
}

/// The same with `smmla`.
#[target_feature(enable = "dotprod,i8mm")]
pub(super) fn product_i8mm(rows: &Rows<'_>, tokens: &Beside, put: Put<'_>) {
    let four = |rows: &Blocks<'_>| match tokens.count.div_ceil(2) {
        2 => four_i8mm::<2>(rows, &tokens.lines),
        3 => four_i8mm::<3>(rows, &tokens.lines),
        _ => four_i8mm::<4>(rows, &tokens.lines),
    };
    by_fours(rows, tokens, four, put);
}

fn by_fours(rows: &Rows<'_>, tokens: &Beside, four: impl Fn(&Blocks<'_>) -> Sums, put: Put<'_>) {
    assert_eq!(rows.format(), Format::Q8_0, "the format of the rows");
    let mut out = [[0.0; ROWS]; MOST];
    for first in (0..rows.count()).step_by(FOUR) {
        for (row, sums) in four(&rows.blocks_of(first)).iter().enumerate() {
            out.iter_mut()
                .zip(sums)
                .for_each(|(out, sum)| out[first + row] = *sum);
        }
    }
    let of_tokens = out.iter().take(tokens.count).enumerate();
    of_tokens.for_each(|(token, values)| put(token, values));
}

/// Lanes are tokens, four in each of `N` registers, and each four codes of a row go to all of them. Block after block as
/// `ds4_kernels::block::Block::accumulate`.
#[target_feature(enable = "dotprod")]
fn four<const N: usize>(rows: &Blocks<'_>, lines: &[Line]) -> Sums {
    let mut totals = [[vdupq_n_f32(0.0); N]; FOUR];
    assert!(rows.iter().all(|row| row.len() == lines.len()));
    for (at, line) in lines.iter().enumerate() {
        // SAFETY: all rows have as many blocks, as asserted.
        let blocks = rows.map(|row| unsafe { row.get_unchecked(at) });
        let weights = blocks.map(|block| Q8_0::group(block, &(), 0));
        let mut dots = [[vdupq_n_s32(0); N]; FOUR];
        for (i, eights) in line.codes.as_chunks::<2>().0.iter().enumerate() {
            for n in 0..N {
                let [first, second] = eights.each_ref().map(|codes| {
                    let tokens: &[[i8; 8]] = &codes[4 * n..4 * n + 4];
                    // SAFETY: four times eight codes are there.
                    unsafe { vld2q_s32(tokens.as_ptr().cast()) }
                });
                let fours = [first.0, first.1, second.0, second.1].map(|four| vreinterpretq_s8_s32(four));
                for row in 0..FOUR {
                    let weights = weights[row][i];
                    // SAFETY: this function enables the instruction.
                    dots[row][n] = unsafe {
                        let sum = sdot_four::<0>(dots[row][n], fours[0], weights);
                        let sum = sdot_four::<1>(sum, fours[1], weights);
                        let sum = sdot_four::<2>(sum, fours[2], weights);
                        sdot_four::<3>(sum, fours[3], weights)
                    };
                }
            }
        }
        let mut of_rows = [0.0; FOUR];
        // SAFETY: the array has room for four values.
        unsafe { vst1q_f32(of_rows.as_mut_ptr(), Q8_0::scales(&blocks)) };
        for n in 0..N {
            let [low, high] = [2 * n, 2 * n + 1].map(|pair| {
                // SAFETY: two scales are there.
                unsafe { vld1_f32(line.scales[pair][0].as_ptr()) }
            });
            for row in 0..FOUR {
                let factor = vmulq_n_f32(vcombine_f32(low, high), of_rows[row]);
                totals[row][n] = vfmaq_f32(totals[row][n], factor, vcvtq_f32_s32(dots[row][n]));
            }
        }
    }
    let mut sums = Sums::default();
    for (sums, totals) in sums.iter_mut().zip(&totals) {
        for (out, total) in sums.as_chunks_mut::<4>().0.iter_mut().zip(totals) {
            // SAFETY: the array has room for four values.
            unsafe { vst1q_f32(out.as_mut_ptr(), *total) };
        }
    }
    sums
}

/// Two rows and two tokens to each register; `N` registers for the tokens.
#[target_feature(enable = "dotprod,i8mm")]
fn four_i8mm<const N: usize>(rows: &Blocks<'_>, lines: &[Line]) -> Sums {
    let mut totals = [[vdupq_n_f32(0.0); N]; FOUR / 2];
    assert!(rows.iter().all(|row| row.len() == lines.len()));
    for (at, line) in lines.iter().enumerate() {
        // SAFETY: all rows have as many blocks, as asserted.
        let blocks = rows.map(|row| unsafe { row.get_unchecked(at) });
        let weights = blocks.map(|block| Q8_0::group(block, &(), 0));
        let mut dots = [[vdupq_n_s32(0); N]; FOUR / 2];
        for (i, codes) in line.codes.iter().enumerate() {
            // SAFETY: two times eight codes are there.
            let x: [int8x16_t; N] = from_fn(|n| unsafe { vld1q_s8(codes[2 * n..2 * n + 2].as_ptr().cast()) });
            for (pair, dots) in dots.iter_mut().enumerate() {
                let of_rows = eights([weights[2 * pair][i / 2], weights[2 * pair + 1][i / 2]])[i % 2];
                for (dots, x) in dots.iter_mut().zip(x) {
                    // SAFETY: this function enables the instruction.
                    *dots = unsafe { smmla(*dots, of_rows, x) };
                }
            }
        }
        let scales = Q8_0::scales(&blocks);
        let of_rows = [vzip1q_f32(scales, scales), vzip2q_f32(scales, scales)];
        for n in 0..N {
            // SAFETY: two scales are there, twice.
            let of_tokens = unsafe { vld1q_f32(line.scales[n].as_ptr().cast()) };
            for (pair, totals) in totals.iter_mut().enumerate() {
                let factor = vmulq_f32(of_rows[pair], of_tokens);
                totals[n] = vfmaq_f32(totals[n], factor, vcvtq_f32_s32(dots[pair][n]));
            }
        }
    }
    let mut sums = Sums::default();
    for (rows, totals) in sums.as_chunks_mut::<2>().0.iter_mut().zip(&totals) {
        for (n, total) in totals.iter().enumerate() {
            let mut four = [[0.0; 2]; 2];
            // SAFETY: the array has room for four values.
            unsafe { vst1q_f32(four.as_mut_ptr().cast(), *total) };
            for (row, two) in rows.iter_mut().zip(four) {
                row[2 * n..2 * n + 2].copy_from_slice(&two);
            }
        }
    }
    sums
}
