//! What loaders read of a file for any device, and a device's errors as the model's.

use crate::kernels::{Device, DeviceError};
use ds4_gguf::{ModelConfig, Weights};
use ds4_model::{ModelError, tensor};

/// The experts of every token id, as kernels take them.
pub(crate) fn experts_of_tokens(
    weights: &Weights,
    config: &ModelConfig,
    name: &str,
) -> Result<Vec<i32>, ModelError> {
    let table = tensor::expert_table(weights, config, name)?;
    let number = |expert| i32::try_from(expert).unwrap_or(i32::MAX);
    Ok(table.into_iter().map(number).collect())
}

/// A device's error as the model's.
pub(crate) fn failed(device: &Device, error: DeviceError) -> ModelError {
    ModelError::Device {
        device: device.facts().name.clone(),
        fatal: error.is_sticky(),
        source: Box::new(error),
    }
}
