//! What one task multiplies: a few rows of weights, and tokens.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::ops::Range;

use ds4_kernels::block::GROUP;
use ds4_kernels::{Activations, Format, Matrix, Q8_BLOCK};

/// Rows that a task takes at a time: the lanes of two of the widest registers, so that what is loaded of a token serves both.
pub(crate) const ROWS: usize = 32;

/// Receives the products of one token with the rows: `put(token, values)`; values beyond the rows that there are mean nothing.
pub(crate) type Put<'a> = &'a mut dyn FnMut(usize, &[f32; ROWS]);

/// Up to [`ROWS`] consecutive rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    matrix: Matrix<'a>,
    first: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    /// The rows from `first` on, as many as a task takes and there are before `end`.
    pub(crate) fn new(matrix: &Matrix<'a>, first: usize, end: usize) -> Self {
        assert!(
            first < end && end <= matrix.rows(),
            "rows {first}..{end} of {}",
            matrix.rows()
        );
        Self {
            matrix: *matrix,
            first,
            count: ROWS.min(end - first),
        }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) const fn format(&self) -> Format {
        self.matrix.format()
    }

    pub(crate) const fn cols(&self) -> usize {
        self.matrix.cols()
    }

    /// Blocks per row.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) const fn blocks(&self) -> usize {
        self.cols() / self.format().block_len()
    }

    /// Row `i`; the last one stands in for those that are missing, so that kernels need no other path.
    pub(crate) fn row(&self, i: usize) -> &'a [u8] {
        self.matrix.row(self.first + i.min(self.count - 1))
    }

    /// Row `from + i` for every `i < N`, in blocks of `BYTES`, which are those of the format.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn blocks_of<const N: usize, const BYTES: usize>(
        &self,
        from: usize,
    ) -> [&'a [[u8; BYTES]]; N] {
        // One division for all rows.
        let (all, blocks) = (self.matrix.data().as_chunks().0, self.blocks());
        std::array::from_fn(|i| {
            let row = self.first + (from + i).min(self.count - 1);
            &all[row * blocks..(row + 1) * blocks]
        })
    }

    /// The same blocks of each of these rows.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn part_of<const N: usize, const BYTES: usize>(
        &self,
        from: usize,
        blocks: &Range<usize>,
    ) -> [&'a [[u8; BYTES]]; N] {
        self.blocks_of(from)
            .map(|row: &[[u8; BYTES]]| &row[blocks.clone()])
    }
}

/// One token's quantised activations.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    /// `[cols]`.
    pub(crate) codes: &'a [i8],
    /// One per block.
    pub(crate) scales: &'a [f32],
    /// One per 16 codes.
    pub(crate) sums: &'a [i16],
    /// One per 32 codes.
    pub(crate) offsets: &'a [i32],
}

impl<'a> Token<'a> {
    /// Token `i` of quantised activations.
    pub(crate) fn of(x: &'a Activations<'_>, i: usize) -> Self {
        let Activations::Q8 {
            cols,
            block,
            codes,
            scales,
            sums,
            offsets,
        } = x
        else {
            unreachable!("plain activations are multiplied by `plain`")
        };
        Self {
            codes: part(codes, *cols, i),
            scales: part(scales, cols / block, i),
            sums: part(sums, cols / GROUP, i),
            offsets: part(offsets, cols / Q8_BLOCK, i),
        }
    }

    /// Fails unless everything that a kernel reads for a row of `cols` values in blocks of `block` is there.
    pub(crate) fn check(&self, cols: usize, block: usize) {
        assert_eq!(self.codes.len(), cols, "codes");
        assert_eq!(self.scales.len(), cols / block, "scales");
        assert_eq!(self.sums.len(), cols / GROUP, "sums");
        assert_eq!(self.offsets.len(), cols / Q8_BLOCK, "offsets");
    }
}

/// Row `i` of `[rows][width]`.
pub(crate) fn part<T>(values: &[T], width: usize, i: usize) -> &[T] {
    &values[i * width..(i + 1) * width]
}
