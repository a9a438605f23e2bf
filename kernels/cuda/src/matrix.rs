//! Weights on the device.

use ds4_kernels::{Format, Matrix};

use crate::uploads::{Split, Uploads};
use crate::{Buffer, CudaError, Device, Slice};

/// A matrix `[rows][cols]` on the device. Quantised blocks lie in two arrays, scales apart from codes, so that codes are aligned; it takes the bytes
/// that it takes in the file.
#[derive(Debug)]
pub struct Weights {
    format: Format,
    rows: usize,
    cols: usize,
    heads: Buffer<u8>,
    body: Buffer<u8>,
}

/// Some rows of [`Weights`].
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Storage format.
    pub format: Format,
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
    pub(crate) heads: Slice<'a, u8>,
    pub(crate) body: Slice<'a, u8>,
}

/// Where a block keeps the bytes that are stored apart: offset and number.
const fn head(format: Format) -> (usize, usize) {
    match format {
        Format::Q8_0 | Format::Iq2Xxs => (0, 2),
        Format::Q2K => (80, 4),
        Format::Q4K => (0, 4),
        Format::Mxfp4 => (0, 1),
        _ => (0, 0),
    }
}

impl Weights {
    /// Copies a matrix to the device.
    ///
    /// # Errors
    /// When there is no room or a copy fails.
    pub fn upload(device: &Device, matrix: &Matrix<'_>) -> Result<Self, CudaError> {
        let (bytes, quiet) = (matrix.data().len(), &mut |_| {});
        let mut uploads = Uploads::new(device, bytes, quiet)?;
        let weights = Self::through(&mut uploads, matrix)?;
        uploads.finish()?;
        Ok(weights)
    }

    /// Copies a matrix to the device, one of many: it is there for what is submitted from now on. The matrix may be dropped when this returns.
    ///
    /// # Errors
    /// As [`Weights::upload`].
    pub fn through(uploads: &mut Uploads<'_>, matrix: &Matrix<'_>) -> Result<Self, CudaError> {
        let (format, device) = (matrix.format(), uploads.device());
        let (at, head) = head(format);
        let (block, bytes) = (format.block_bytes(), matrix.data().len());
        let heads = device.allocate("weights", bytes / block * head)?;
        let body = device.allocate("weights", bytes / block * (block - head))?;
        if head == 0 {
            uploads.write(matrix.data(), body.all())?;
        } else {
            let split = Split { block, at, head };
            uploads.blocks(matrix.data(), split, heads.all(), body.all())?;
        }
        Ok(Self {
            format,
            rows: matrix.rows(),
            cols: matrix.cols(),
            heads,
            body,
        })
    }

    /// All rows.
    #[must_use]
    pub fn all(&self) -> Rows<'_> {
        self.part(0, self.rows)
    }

    /// `rows` rows from `first` on.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn part(&self, first: usize, rows: usize) -> Rows<'_> {
        let blocks = self.cols / self.format.block_len();
        let (_, head) = head(self.format);
        let of = |bytes: usize| first * blocks * bytes..(first + rows) * blocks * bytes;
        Rows {
            format: self.format,
            rows,
            cols: self.cols,
            heads: self.heads.all().range(of(head)),
            body: self.body.all().range(of(self.format.block_bytes() - head)),
        }
    }

    /// Rows of all matrices in the tensor together.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Storage format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Bytes on the device.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.heads.len() + self.body.len()
    }
}
