//! The device under test, and what a comparison says.

use std::fmt::Debug;

use ds4_kernels::{Format, Matrix, MatrixError};
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::{Buffer, CudaError, Device, Element, Slice};
use thiserror::Error;

use crate::Random;

/// Why a case did not pass.
#[derive(Debug, Error)]
pub enum Failure {
    /// The device did not do what it was asked.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A case that makes matrices which are none.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// Another number of results.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// The result.
        what: String,
        /// By the reference.
        expected: usize,
        /// On the device.
        found: usize,
    },
    /// Results with other bits.
    #[error("{what}: {count} of {len} differ, first {at}: expected {expected}, found {found}")]
    Differs {
        /// The result.
        what: String,
        /// How many values differ.
        count: usize,
        /// Of so many.
        len: usize,
        /// Index of the first.
        at: usize,
        /// By the reference.
        expected: String,
        /// On the device.
        found: String,
    },
}

/// What a case comes to.
pub type Outcome = Result<(), Failure>;

/// Where a case runs and what it draws its operands from.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The device.
    pub device: &'a Device,
    /// Shapes and operands.
    pub random: Random,
    /// Tokens of the operands: the one dimension that the caller decides.
    pub tokens: usize,
}

impl Bench<'_> {
    pub(crate) fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        self.device.upload("operands of a check", values)
    }

    pub(crate) fn room<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        self.device.allocate("results of a check", len)
    }

    pub(crate) fn weights(&self, matrix: &Matrix<'_>) -> Result<Weights, CudaError> {
        Weights::upload(self.device, matrix)
    }

    /// Compares bits with what lies on the device.
    pub(crate) fn bits(&self, what: &str, expected: &[f32], found: Slice<'_, f32>) -> Outcome {
        compare(what, expected, &self.device.download(found)?, |a, b| {
            a.to_bits() == b.to_bits()
        })
    }

    /// Compares integers with what lies on the device.
    pub(crate) fn equal<T: Element + PartialEq + Debug>(
        &self,
        what: &str,
        expected: &[T],
        found: Slice<'_, T>,
    ) -> Outcome {
        compare(what, expected, &self.device.download(found)?, T::eq)
    }
}

/// A matrix over bytes that [`Random::rows`] made.
pub(crate) fn matrix(
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> Result<Matrix<'_>, MatrixError> {
    Matrix::new(format, rows, cols, bytes)
}

pub(crate) fn compare<T: Debug>(
    what: &str,
    expected: &[T],
    found: &[T],
    same: impl Fn(&T, &T) -> bool,
) -> Outcome {
    if expected.len() != found.len() {
        return Err(Failure::Length {
            what: what.to_owned(),
            expected: expected.len(),
            found: found.len(),
        });
    }
    let mut differing = (0..expected.len()).filter(|i| !same(&expected[*i], &found[*i]));
    let Some(at) = differing.next() else {
        return Ok(());
    };
    Err(Failure::Differs {
        what: what.to_owned(),
        count: 1 + differing.count(),
        len: expected.len(),
        at,
        expected: format!("{:?}", expected[at]),
        found: format!("{:?}", found[at]),
    })
}
