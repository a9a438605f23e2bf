//! A model as the planner sees it.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Layers `first..=last`; the span that starts at 0 holds the embedding, the one with the head decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First layer.
    pub first: usize,
    /// Last layer, inclusive.
    pub last: usize,
    /// Whether the output head belongs to it.
    pub head: bool,
}

impl Span {
    pub(crate) const fn layers(self) -> RangeInclusive<usize> {
        self.first..=self.last
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.head {
            write!(f, "{}:output", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Bytes of its weights.
    #[serde(rename = "weight_bytes")]
    pub weights: u64,
    /// Bytes of its KV at [`Parts::context`] tokens.
    #[serde(rename = "kv_bytes")]
    pub kv: u64,
}

/// Bytes of one model, by part. Reads from what `ds4 inspect --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The layers, in order.
    pub layers: Vec<Part>,
    /// The token embedding: first stage only.
    #[serde(rename = "embedding_bytes")]
    pub embedding: u64,
    /// The output head: last stage only.
    #[serde(rename = "head_bytes")]
    pub head: u64,
    /// Tokens of KV that there must be room for.
    #[serde(rename = "kv_context_tokens")]
    pub context: u64,
    /// Bytes that go from stage to stage for one token.
    #[serde(rename = "activation_bytes_per_token")]
    pub activation: u64,
}

impl Parts {
    /// All layers and the head.
    #[must_use]
    pub fn full(&self) -> Span {
        Span {
            first: 0,
            last: self.layers.len().saturating_sub(1),
            head: true,
        }
    }

    /// Bytes of weights and KV that a stage of a span holds.
    #[must_use]
    pub fn resident(&self, span: Span) -> u64 {
        let embedding = if span.first == 0 { self.embedding } else { 0 };
        let layers: u64 = self.layers[span.layers()]
            .iter()
            .map(|part| part.weights + part.kv)
            .sum();
        embedding + layers + if span.head { self.head } else { 0 }
    }

    /// Bytes of weights that a token passes. The embedding is read, not computed: it takes memory but no time.
    pub(crate) fn work(&self, span: Span) -> u64 {
        let layers: u64 = self.layers[span.layers()].iter().map(|part| part.weights).sum();
        layers + if span.head { self.head } else { 0 }
    }

    /// Bytes of KV that a token leaves in layers, on average over the context.
    #[allow(clippy::cast_precision_loss)] // bytes
    pub(crate) fn kv_per_token(&self, layers: std::ops::Range<usize>) -> f64 {
        let kv: u64 = self.layers[layers].iter().map(|part| part.kv).sum();
        kv as f64 / self.context.max(1) as f64
    }
}
