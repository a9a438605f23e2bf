//! What layers weigh; `ds4-plan` says which of them go to which machine.

use ds4_gguf::tensors::check;
use ds4_gguf::{Gguf, GgufError, LayerSpan, ModelConfig};
use ds4_plan::{Part, Parts};

use crate::{KvLayout, Numerics};

/// Bytes of one model, by part.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// The token embedding: first stage only.
    pub embedding: u64,
    /// Weights of each layer.
    pub layers: Vec<u64>,
    /// The output head: last stage only.
    pub head: u64,
    /// Row kinds and sizes of the KV.
    pub layout: KvLayout,
}

impl Sizes {
    /// Measures the tensors of a file, all of them checked.
    ///
    /// # Errors
    /// Names the first tensor that is missing or not what the config implies.
    pub fn of(gguf: &Gguf, config: &ModelConfig, numerics: Numerics) -> Result<Self, GgufError> {
        let mut sizes = Self {
            embedding: 0,
            layers: vec![0; config.n_layer],
            head: 0,
            layout: KvLayout::new(config, numerics),
        };
        for tensor in check(gguf, config, LayerSpan::full(config.n_layer))? {
            *sizes.part(&tensor.name) += tensor.bytes;
        }
        Ok(sizes)
    }

    /// The part that a tensor belongs to, by its name.
    fn part(&mut self, name: &str) -> &mut u64 {
        let layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|number| number.parse::<usize>().ok());
        match layer.and_then(|layer| self.layers.get_mut(layer)) {
            Some(layer) => layer,
            None if name.starts_with("token_embd.") => &mut self.embedding,
            None => &mut self.head,
        }
    }

    /// Bytes of weights that a span maps.
    #[must_use]
    pub fn weights(&self, span: LayerSpan) -> u64 {
        let embedding = if span.first == 0 { self.embedding } else { 0 };
        let head = if span.head { self.head } else { 0 };
        embedding + self.layers[span.layers()].iter().sum::<u64>() + head
    }

    /// Weights of a span and the KV of its layers at `context` tokens.
    #[must_use]
    pub fn resident(&self, span: LayerSpan, context: u64) -> u64 {
        self.weights(span) + self.layout.bytes(span.layers(), context)
    }

    /// As the planner takes them: weights and KV at `context` tokens, and the bytes of a token between stages.
    #[must_use]
    pub fn parts(&self, config: &ModelConfig, context: u64) -> Parts {
        let layer = |(i, weights): (usize, &u64)| Part {
            weights: *weights,
            kv: self.layout.bytes(i..i + 1, context),
        };
        Parts {
            layers: self.layers.iter().enumerate().map(layer).collect(),
            embedding: self.embedding,
            head: self.head,
            context,
            activation: (config.hidden_width() * size_of::<f32>()) as u64,
        }
    }
}
