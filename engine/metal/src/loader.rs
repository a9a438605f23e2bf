//! Tensors of a file, as the device reads them.

use std::sync::Arc;

use ds4_gguf::{ModelConfig, Weights as Mapped};
use ds4_kernels::Matrix;
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::{Buffer, Device, MetalError};
use ds4_model::{ModelError, tensor};

/// Tensors of one file for one device.
pub(crate) struct Loader<'a> {
    pub(crate) device: &'a Device,
    pub(crate) mapped: &'a Arc<Mapped>,
    pub(crate) config: &'a ModelConfig,
}

impl Loader<'_> {
    /// A matrix where it is mapped; it keeps the map.
    pub(crate) fn matrix(&self, name: &str) -> Result<Weights, ModelError> {
        Weights::shared(self.device, self.mapped, |mapped| matrix(mapped, name))?
            .map_err(|error| failed(self.device, error))
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Buffer<f32>, ModelError> {
        let values = tensor::vector(self.mapped, name)?;
        self.device
            .upload("weights", &values)
            .map_err(|error| failed(self.device, error))
    }

    /// The experts of every token id.
    pub(crate) fn experts_of_tokens(&self, name: &str) -> Result<Buffer<i32>, ModelError> {
        let table = tensor::expert_table(self.mapped, self.config, name)?;
        let table: Vec<i32> = table
            .into_iter()
            .map(|expert| i32::try_from(expert).unwrap_or(i32::MAX))
            .collect();
        self.device
            .upload("weights", &table)
            .map_err(|error| failed(self.device, error))
    }
}

#[allow(clippy::cast_possible_truncation)] // the config bounds every dimension
fn matrix<'a>(mapped: &'a Mapped, name: &str) -> Result<Matrix<'a>, ModelError> {
    let view = mapped.require(name)?;
    let dims = &view.info.dims;
    let rows: u64 = dims[1..].iter().product();
    let matrix = Matrix::new(view.info.format, rows as usize, dims[0] as usize, view.data);
    matrix.map_err(|source| ModelError::Matrix {
        name: name.to_owned(),
        source,
    })
}

/// A device's error as the model's.
pub(crate) fn failed(device: &Device, error: MetalError) -> ModelError {
    ModelError::Device {
        device: device.facts().name.clone(),
        fatal: error.is_sticky(),
        source: Box::new(error),
    }
}
