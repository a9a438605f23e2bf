//! A weight matrix as it lies in the file.

use thiserror::Error;

use crate::Format;

/// Why bytes are not the matrix they were said to be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MatrixError {
    /// A row must be whole blocks.
    #[error("a row of {cols} values is no whole number of {format} blocks of {block}")]
    Columns {
        /// Values per row.
        cols: usize,
        /// The storage format.
        format: Format,
        /// Values per block.
        block: usize,
    },
    /// The byte count does not follow from the shape.
    #[error("[{rows}, {cols}] {format} takes {expected} bytes, found {found}")]
    Bytes {
        /// Output rows.
        rows: usize,
        /// Values per row.
        cols: usize,
        /// The storage format.
        format: Format,
        /// Bytes that the shape takes; `usize::MAX` when it overflows.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

/// Row-major weights, `[rows out][cols in]`, borrowed from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Checks that `data` is exactly `rows * cols` values of `format`.
    ///
    /// # Errors
    /// When a row is not whole blocks or the byte count differs.
    pub fn new(format: Format, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, MatrixError> {
        let block = format.block_len();
        if !cols.is_multiple_of(block) {
            return Err(MatrixError::Columns { cols, format, block });
        }
        let expected = (cols / block)
            .checked_mul(format.block_bytes())
            .and_then(|row| row.checked_mul(rows));
        if expected != Some(data.len()) {
            let expected = expected.unwrap_or(usize::MAX);
            return Err(MatrixError::Bytes {
                rows,
                cols,
                format,
                expected,
                found: data.len(),
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            data,
        })
    }

    /// Storage format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Output rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.cols / self.format.block_len() * self.format.block_bytes()
    }

    /// `rows` rows from `first` on, as a matrix.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn part(&self, first: usize, rows: usize) -> Self {
        let bytes = self.row_bytes();
        Self {
            rows,
            data: &self.data[first * bytes..(first + rows) * bytes],
            ..*self
        }
    }

    /// The bytes of all rows.
    #[must_use]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of row `row`.
    ///
    /// # Panics
    /// When `row >= self.rows()`.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..(row + 1) * bytes]
    }
}
