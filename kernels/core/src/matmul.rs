//! `y[token][row] = weights[row] . x[token]`, the reference.
//!
//! Quantised weights against quantised activations: each block's dot is an exact integer, and blocks are added in ascending order with one
//! fused multiply-add. Whatever computes the integer, the result has the same bits.

use std::ops::Range;

use crate::dequant::{half_at, iq2_group, q2_code, q4_code, q4_scale};
use crate::{Activations, Format, Matrix, dequantize_row, dot_f32};

/// Multiplies all rows; `y` is `[tokens][rows]`.
///
/// # Panics
/// When the columns differ, `y` has another size, or quantised activations do not fit the weights' format.
pub fn matmul(weights: &Matrix<'_>, x: &Activations, y: &mut [f32]) {
    assert_eq!(y.len(), x.tokens() * weights.rows(), "y is [tokens][rows]");
    let rows = weights.rows();
    matmul_rows(weights, x, 0..rows, |token, row, value| {
        y[token * rows + row] = value
    });
}

/// Multiplies the rows of `range` and hands each result to `put(token, row, value)`: what a thread computes.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_rows(
    weights: &Matrix<'_>,
    x: &Activations,
    range: Range<usize>,
    mut put: impl FnMut(usize, usize, f32),
) {
    assert_eq!(
        weights.cols(),
        x.cols(),
        "columns of the weights and of the activations"
    );
    match x {
        Activations::F32 { cols, values } => {
            let mut row_values = vec![0.0; *cols];
            for row in range {
                dequantize_row(weights.format(), weights.row(row), &mut row_values);
                for (token, input) in values.chunks_exact(*cols).enumerate() {
                    put(token, row, dot_f32(&row_values, input));
                }
            }
        }
        Activations::Q8 {
            cols,
            block,
            codes,
            scales,
        } => {
            assert_eq!(
                *block,
                weights.format().block_len(),
                "activation block for {} weights",
                weights.format()
            );
            for row in range {
                for (token, codes) in codes.chunks_exact(*cols).enumerate() {
                    let scales = &scales[token * (cols / block)..(token + 1) * (cols / block)];
                    put(
                        token,
                        row,
                        dot_q8(weights.format(), weights.row(row), codes, scales),
                    );
                }
            }
        }
    }
}

/// Blocks in ascending order, one fused multiply-add each (two where the format has minimums).
#[allow(clippy::cast_precision_loss)] // integer block dots stay below 2^24 but for Q4_K and IQ2_XXS, where one rounding is the definition
fn dot_q8(format: Format, row: &[u8], codes: &[i8], scales: &[f32]) -> f32 {
    let blocks = row
        .chunks_exact(format.block_bytes())
        .zip(codes.chunks_exact(format.block_len()));
    blocks.zip(scales).fold(0.0f32, |sum, ((block, codes), scale)| {
        let BlockDot {
            d,
            dmin,
            dot,
            minimums,
        } = block_dot(format, block, codes);
        let sum = (d * scale).mul_add(dot as f32, sum);
        if dmin == 0.0 {
            sum
        } else {
            (-(dmin * scale)).mul_add(minimums as f32, sum)
        }
    })
}

/// One block against one block of codes, before the scales.
struct BlockDot {
    d: f32,
    dmin: f32,
    dot: i32,
    minimums: i32,
}

fn block_dot(format: Format, block: &[u8], codes: &[i8]) -> BlockDot {
    match format {
        Format::Q8_0 => {
            let products = block[2..]
                .iter()
                .zip(codes)
                .map(|(w, x)| i32::from(w.cast_signed()) * i32::from(*x));
            BlockDot {
                d: half_at(block, 0),
                dmin: 0.0,
                dot: products.sum(),
                minimums: 0,
            }
        }
        Format::Q2K => with_minimums(
            codes,
            16,
            half_at(block, 80),
            half_at(block, 82),
            |i| q2_code(block, i),
            |j| (block[j] & 15, block[j] >> 4),
        ),
        Format::Q4K => with_minimums(
            codes,
            32,
            half_at(block, 0),
            half_at(block, 2),
            |i| q4_code(block, i),
            |j| q4_scale(block, j),
        ),
        Format::Iq2Xxs => {
            let groups = codes.chunks_exact(32).enumerate().map(|(j, codes)| {
                let (weights, step) = iq2_group(block, j);
                i32::from(step)
                    * weights
                        .iter()
                        .zip(codes)
                        .map(|(w, x)| i32::from(*w) * i32::from(*x))
                        .sum::<i32>()
            });
            BlockDot {
                d: half_at(block, 0) * 0.125,
                dmin: 0.0,
                dot: groups.sum(),
                minimums: 0,
            }
        }
        Format::F32 | Format::F16 | Format::I32 => {
            unreachable!("{format} has no 8-bit activations: block length 1")
        }
    }
}

/// Sub-blocks of `width` values with an integer scale and minimum each.
fn with_minimums(
    codes: &[i8],
    width: usize,
    d: f32,
    dmin: f32,
    weight: impl Fn(usize) -> u8,
    scale: impl Fn(usize) -> (u8, u8),
) -> BlockDot {
    let mut dot = 0;
    let mut minimums = 0;
    for (j, part) in codes.chunks_exact(width).enumerate() {
        let (step, minimum) = scale(j);
        let products = part
            .iter()
            .enumerate()
            .map(|(i, x)| i32::from(weight(j * width + i)) * i32::from(*x));
        dot += i32::from(step) * products.sum::<i32>();
        minimums += i32::from(minimum) * part.iter().map(|x| i32::from(*x)).sum::<i32>();
    }
    BlockDot {
        d,
        dmin,
        dot,
        minimums,
    }
}
