//! Weights as the device reads them: the bytes of the file.

use std::any::Any;
use std::sync::Arc;

use ds4_kernels::{Format, Matrix};

use crate::{Buffer, Device, MetalError, Slice};

/// A matrix `[rows][cols]`, its blocks as they lie in the file.
#[derive(Debug)]
pub struct Weights {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Buffer<u8>,
    /// What holds the bytes, where they are not the device's own.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
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
    pub(crate) bytes: Slice<'a, u8>,
}

impl Weights {
    /// A matrix where it lies, without a copy: `view` finds it in `owner`, which stays for as long as the result. Its pages are read by the device, so
    /// what lies beside it on them is never to be freed before `owner` is: a mapped file.
    ///
    /// # Errors
    /// Those of `view`; within, those of the device.
    pub fn shared<O, E>(
        device: &Device,
        owner: &Arc<O>,
        view: impl for<'o> FnOnce(&'o O) -> Result<Matrix<'o>, E>,
    ) -> Result<Result<Self, MetalError>, E>
    where
        O: Send + Sync + 'static,
    {
        let matrix = view(owner)?;
        // SAFETY: the bytes are borrowed from the owner, for any life that a borrow of it may have; nobody writes them while it is shared, and it is kept
        // until after the buffer is gone, which waits for what was launched.
        let bytes = unsafe { device.adopt(matrix.data()) };
        Ok(bytes.map(|bytes| Self::of(&matrix, bytes, Some(owner.clone()))))
    }

    /// A copy of a matrix.
    ///
    /// # Errors
    /// When there is no room.
    pub fn upload(device: &Device, matrix: &Matrix<'_>) -> Result<Self, MetalError> {
        let bytes = device.upload("weights", matrix.data())?;
        Ok(Self::of(matrix, bytes, None))
    }

    fn of(matrix: &Matrix<'_>, bytes: Buffer<u8>, owner: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self {
            format: matrix.format(),
            rows: matrix.rows(),
            cols: matrix.cols(),
            bytes,
            _owner: owner,
        }
    }

    /// All rows.
    #[must_use]
    pub fn all(&self) -> Rows<'_> {
        Rows {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            bytes: self.bytes.all(),
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
}
