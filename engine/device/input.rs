//! An input that several matrices share.

use std::cell::OnceCell;

use crate::kernels::activation::{Quantized, quantize};
use crate::kernels::matrix::{Rows, Weights};
use crate::kernels::{Arena, Device, DeviceError, Slice, matmul};
use ds4_kernels::Form;

/// Activations `[tokens][cols]`; each form that matrices ask for is made once.
pub(crate) struct Input<'a> {
    device: &'a Device,
    arena: &'a Arena,
    pub(crate) values: Slice<'a, f32>,
    cols: usize,
    q8: OnceCell<Quantized<'a>>,
    q8_k: OnceCell<Quantized<'a>>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(device: &'a Device, arena: &'a Arena, values: Slice<'a, f32>, cols: usize) -> Self {
        Self {
            device,
            arena,
            values,
            cols,
            q8: OnceCell::new(),
            q8_k: OnceCell::new(),
        }
    }

    /// The values as bytes, in `form`.
    pub(crate) fn quantized(&self, form: Form) -> Result<Quantized<'a>, DeviceError> {
        let (cell, block) = match form {
            Form::Q8 => (&self.q8, ds4_kernels::Q8_BLOCK),
            _ => (&self.q8_k, ds4_kernels::Q8K_BLOCK),
        };
        if let Some(made) = cell.get() {
            return Ok(*made);
        }
        let codes = self.arena.take(self.device, self.values.len())?;
        let scales = self.arena.take(self.device, self.values.len() / block)?;
        let made = quantize(self.device, form, self.cols, self.values, codes, scales)?;
        Ok(*cell.get_or_init(|| made))
    }

    /// `[tokens][rows]`.
    pub(crate) fn times(&self, weights: &Weights) -> Result<Slice<'a, f32>, DeviceError> {
        let rows = weights.all();
        let y = self
            .arena
            .take(self.device, self.values.len() / self.cols * rows.rows)?;
        self.times_into(rows, y)?;
        Ok(y)
    }

    fn times_into(&self, rows: Rows<'_>, y: Slice<'_, f32>) -> Result<(), DeviceError> {
        match Form::of(rows.format) {
            Form::F32 => matmul::floats(self.device, rows, self.values, y),
            form => matmul::quantized(self.device, rows, self.quantized(form)?, y),
        }
    }
}
