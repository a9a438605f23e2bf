//! Weights by name: where they lie in the mapped file, checked once at load.

use std::cell::OnceCell;

use ds4_gguf::Weights;
use ds4_kernels::{Activations, Backend, Format, Matrix, dequantize_row};

use crate::{ModelError, Numerics};

/// A matrix `[rows out][cols in]` of the mapped file; the third dimension of expert tensors counts matrices.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    slot: usize,
    format: Format,
    rows: usize,
    cols: usize,
    count: usize,
}

#[allow(clippy::cast_possible_truncation)] // the config bounds every dimension
impl Weight {
    pub(crate) fn load(weights: &Weights, name: &str) -> Result<Self, ModelError> {
        let matrix = matrix(weights, name)?;
        let slot = weights
            .slot(name)
            .ok_or_else(|| ds4_gguf::GgufError::MissingTensor(name.to_owned()))?;
        let dims = &weights.view(slot).info.dims;
        let count = dims.get(2).map_or(1, |count| *count as usize);
        Ok(Self {
            slot,
            format: matrix.format(),
            rows: dims.get(1).map_or(1, |rows| *rows as usize),
            cols: matrix.cols(),
            count,
        })
    }

    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    pub(crate) const fn cols(&self) -> usize {
        self.cols
    }

    /// Rows `from..from + rows` of the tensor, all matrices of it counted through.
    pub(crate) fn part<'a>(&self, weights: &'a Weights, from: usize, rows: usize) -> Matrix<'a> {
        let row_bytes = self.cols / self.format.block_len() * self.format.block_bytes();
        let data = &weights.view(self.slot).data[from * row_bytes..(from + rows) * row_bytes];
        match Matrix::new(self.format, rows, self.cols, data) {
            Ok(matrix) => matrix,
            Err(error) => unreachable!("checked at load: {error}"),
        }
    }

    /// All matrices of an expert tensor, stacked.
    pub(crate) fn stack<'a>(&self, weights: &'a Weights) -> Matrix<'a> {
        self.part(weights, 0, self.rows * self.count)
    }

    /// Matrices in the tensor.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// The values of one row.
    pub(crate) fn row(&self, weights: &Weights, row: usize, out: &mut [f32]) {
        dequantize_row(self.format, self.part(weights, row, 1).row(0), out);
    }
}

/// A tensor where it is mapped; the matrices of a third dimension are stacked.
///
/// # Errors
/// When the tensor is missing or its bytes do not fit its shape.
#[allow(clippy::cast_possible_truncation)] // the config bounds every dimension
pub fn matrix<'a>(weights: &'a Weights, name: &str) -> Result<Matrix<'a>, ModelError> {
    let view = weights.require(name)?;
    let dims = &view.info.dims;
    let rows: u64 = dims[1..].iter().product();
    let matrix = Matrix::new(view.info.format, rows as usize, dims[0] as usize, view.data);
    matrix.map_err(|source| ModelError::Matrix {
        name: name.to_owned(),
        source,
    })
}

/// All values of a tensor, for norms, biases and other small ones.
///
/// # Errors
/// When the tensor is missing or its bytes do not fit its shape.
pub fn vector(weights: &Weights, name: &str) -> Result<Vec<f32>, ModelError> {
    let weight = Weight::load(weights, name)?;
    let mut values = vec![0.0; weight.rows * weight.cols];
    for (i, row) in values.chunks_exact_mut(weight.cols).enumerate() {
        weight.row(weights, i, row);
    }
    Ok(values)
}

/// An input that several matrices share; each form that they ask for is made once.
#[derive(Debug)]
pub(crate) struct Input<'a, B> {
    backend: &'a B,
    numerics: Numerics,
    values: &'a [f32],
    cols: usize,
    forms: [OnceCell<Activations<'a>>; 3],
}

impl<'a, B: Backend> Input<'a, B> {
    /// `values` are `[tokens][cols]`.
    pub(crate) fn new(backend: &'a B, numerics: Numerics, values: &'a [f32], cols: usize) -> Self {
        Self {
            backend,
            numerics,
            values,
            cols,
            forms: [const { OnceCell::new() }; 3],
        }
    }

    /// The activations that weights of `format` take.
    pub(crate) fn for_weights(&self, format: Format) -> &Activations<'a> {
        let form = self.numerics.form(format);
        self.forms[form as usize].get_or_init(|| self.backend.activations(self.values, self.cols, form))
    }

    /// Writes `[tokens][rows]` to `y`.
    pub(crate) fn times(&self, matrix: &Matrix<'_>, y: &mut [f32]) {
        self.backend.matmul(matrix, self.for_weights(matrix.format()), y);
    }

    pub(crate) const fn tokens(&self) -> usize {
        self.values.len() / self.cols
    }
}
