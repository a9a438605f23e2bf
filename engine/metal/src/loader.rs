//! Tensors of a file, as the device reads them.

use std::sync::Arc;

use ds4_gguf::{ModelConfig, Weights as Mapped};
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::{Buffer, Device, Element};
use ds4_model::{ModelError, tensor};

use crate::tensors::{experts_of_tokens, failed};

/// Tensors of one file for one device.
pub(crate) struct Loader<'a> {
    pub(crate) device: &'a Device,
    pub(crate) mapped: &'a Arc<Mapped>,
    pub(crate) config: &'a ModelConfig,
}

impl Loader<'_> {
    /// A matrix where it is mapped; it keeps the map.
    pub(crate) fn matrix(&self, name: &str) -> Result<Weights, ModelError> {
        Weights::shared(self.device, self.mapped, |mapped| tensor::matrix(mapped, name))?
            .map_err(|error| failed(self.device, error))
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Buffer<f32>, ModelError> {
        self.values(&tensor::vector(self.mapped, name)?)
    }

    /// The experts of every token id.
    pub(crate) fn experts_of_tokens(&self, name: &str) -> Result<Buffer<i32>, ModelError> {
        self.values(&experts_of_tokens(self.mapped, self.config, name)?)
    }

    fn values<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, ModelError> {
        let buffer = self.device.upload("weights", values);
        buffer.map_err(|error| failed(self.device, error))
    }
}
