//! Tensors of a file, copied to the device.

use std::cell::RefCell;

use ds4_gguf::{ModelConfig, Weights as Mapped};
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::{Buffer, Device, Element, Uploads, Way};
use ds4_model::{ModelError, tensor};

use crate::tensors::{experts_of_tokens, failed};

/// Copies tensors of one file to one device.
pub(crate) struct Loader<'a> {
    device: &'a Device,
    pub(crate) mapped: &'a Mapped,
    pub(crate) config: &'a ModelConfig,
    uploads: RefCell<Uploads<'a>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        device: &'a Device,
        mapped: &'a Mapped,
        config: &'a ModelConfig,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, ModelError> {
        let bytes = usize::try_from(mapped.bytes()).unwrap_or(usize::MAX);
        let uploads = Uploads::new(device, bytes, progress).map_err(|error| failed(device, error))?;
        Ok(Self {
            device,
            mapped,
            config,
            uploads: RefCell::new(uploads),
        })
    }

    pub(crate) fn matrix(&self, name: &str) -> Result<Weights, ModelError> {
        let matrix = tensor::matrix(self.mapped, name)?;
        Weights::through(&mut self.uploads.borrow_mut(), &matrix).map_err(|error| failed(self.device, error))
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Buffer<f32>, ModelError> {
        self.values(&tensor::vector(self.mapped, name)?)
    }

    /// The experts of every token id.
    pub(crate) fn experts_of_tokens(&self, name: &str) -> Result<Buffer<i32>, ModelError> {
        self.values(&experts_of_tokens(self.mapped, self.config, name)?)
    }

    fn values<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, ModelError> {
        let copied = || {
            let buffer = self.device.allocate("weights", values.len())?;
            self.uploads.borrow_mut().write(values, buffer.all())?;
            Ok(buffer)
        };
        copied().map_err(|error| failed(self.device, error))
    }

    /// Waits until everything is there; how it came.
    pub(crate) fn finish(self) -> Result<Way, ModelError> {
        self.uploads
            .into_inner()
            .finish()
            .map_err(|error| failed(self.device, error))
    }
}
