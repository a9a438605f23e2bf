//! What is checked before a model is loaded.

use crate::kernels::{Arena, DeviceError};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_model::{ModelError, Numerics, check_span};

use crate::DEVICE;

/// The file's config, if it has these layers and a device serves these numerics.
pub(crate) fn config(gguf: &Gguf, span: LayerSpan, numerics: Numerics) -> Result<ModelConfig, ModelError> {
    if numerics != Numerics::Canonical {
        return Err(ModelError::Value {
            name: "numerics".into(),
            expected: format!(
                "{} on {DEVICE} (--backend cpu has the others)",
                Numerics::Canonical
            ),
            found: numerics.to_string(),
        });
    }
    let config = ModelConfig::from_gguf(gguf)?;
    check_span(&config, span)?;
    Ok(config)
}

/// What a model takes of a device's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) weights: u64,
    /// Until the weights are there; sessions and scratch come after.
    pub(crate) loading: u64,
    /// Graphs that may come to be.
    pub(crate) graphs: u64,
}

impl Need {
    /// A tenth of the weights, but no less than the first pass takes.
    fn scratch(self) -> u64 {
        (self.weights / 10).max(Arena::FIRST as u64).max(self.loading)
    }

    /// Refuses what does not fit `free` bytes of `total`.
    pub(crate) fn check(self, (free, total): (u64, u64)) -> Result<(), DeviceError> {
        let (Self { weights, graphs, .. }, scratch) = (self, self.scratch());
        let asked = weights + scratch + graphs;
        if asked <= free {
            return Ok(());
        }
        let of_graphs = if graphs == 0 {
            String::new()
        } else {
            format!(", {graphs} for decode graphs")
        };
        Err(DeviceError::Memory {
            what: format!(
                "a model ({weights} bytes of weights, {scratch} for sessions and scratch{of_graphs})"
            )
            .into(),
            asked,
            free,
            total,
        })
    }
}
