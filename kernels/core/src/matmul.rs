//! `y[token][row] = weights[row] . x[token]`, the reference.
//!
//! Quantised weights against quantised activations: each block's dot is an exact integer, and blocks are added in ascending order with one
//! fused multiply-add. Whatever computes the integer, the result has the same bits.

use std::ops::Range;

use crate::block::Block;
use crate::{Activations, Format, Matrix, dequantize_row, dot_f32};

/// Multiplies all rows; `y` is `[tokens][rows]`.
///
/// # Panics
/// When the columns differ, `y` has another size, or quantised activations do not fit the weights' format.
pub fn matmul(weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]) {
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
    x: &Activations<'_>,
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
            ..
        } => {
            assert_eq!(
                *block,
                weights.format().block_len(),
                "activation block for {} weights",
                weights.format()
            );
            for row in range {
                let blocks = unpack_row(weights.format(), weights.row(row));
                let tokens = codes.chunks_exact(*cols).zip(scales.chunks_exact(cols / block));
                for (token, (codes, scales)) in tokens.enumerate() {
                    put(token, row, dot_q8(&blocks, *block, codes, scales));
                }
            }
        }
    }
}

/// The blocks of one row, ascending.
#[must_use]
pub fn unpack_row(format: Format, row: &[u8]) -> Vec<Block> {
    row.chunks_exact(format.block_bytes())
        .map(|bytes| Block::unpack(format, bytes))
        .collect()
}

/// Blocks in ascending order.
fn dot_q8(blocks: &[Block], length: usize, codes: &[i8], scales: &[f32]) -> f32 {
    let parts = blocks.iter().zip(codes.chunks_exact(length)).zip(scales);
    parts.fold(0.0, |sum, ((block, codes), scale)| {
        let (dot, minimums) = block.dot(codes);
        block.accumulate(sum, *scale, dot, minimums)
    })
}
