//! What can be wrong with a request to the model or with a KV shard.

use ds4_gguf::{GgufError, LayerSpan};
use ds4_kernels::MatrixError;
use ds4_kernels::codec::RowError;
use thiserror::Error;

use crate::KvKind;
use crate::memory::{Available, Need};

/// Why the model did not compute.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file is not usable.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A tensor's bytes do not fit its shape.
    #[error("tensor {name}: {source}")]
    Matrix {
        /// The tensor.
        name: String,
        /// What differs.
        source: MatrixError,
    },
    /// A value in a tensor is out of range.
    #[error("tensor {name}: expected {expected}, found {found}")]
    Value {
        /// The tensor.
        name: String,
        /// The range.
        expected: String,
        /// The value.
        found: String,
    },
    /// The pass was told to end; the KV may hold rows of some layers and not of others, and only going back to a checkpoint makes it sound.
    #[error("stopped: nobody waits for the result")]
    Stopped,
    /// A token id that the vocabulary lacks.
    #[error("token {at}: expected an id below {vocabulary}, found {found}")]
    Token {
        /// Index in the chunk.
        at: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
        /// The id.
        found: u32,
    },
    /// Hidden states of another shape.
    #[error("hidden states: expected {expected} values ({tokens} tokens of {width}), found {found}")]
    Hidden {
        /// Tokens in the chunk.
        tokens: usize,
        /// Values per token.
        width: usize,
        /// Their product.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A device did not do what it was asked.
    #[error("{device}: {source}")]
    Device {
        /// Its name.
        device: String,
        /// Whether it is beyond repair for this process: every later call fails too.
        fatal: bool,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine cannot hold the layers.
    #[error(
        "memory: expected {} bytes for layers {} ({} bytes of weights, {} of KV for {} tokens, {} of activations), found {} ({}); give this stage fewer layers, \
         a shorter context or more memory",
        need.bytes(), need.span, need.weights, need.kv, need.tokens, need.activations, found.bytes, found.limit
    )]
    Memory {
        /// What the layers take.
        need: Need,
        /// What there is.
        found: Available,
    },
    /// The slice does not own what was asked of it.
    #[error("layers {asked}: expected them within {owned} of this slice")]
    Span {
        /// What was asked.
        asked: String,
        /// What is loaded.
        owned: LayerSpan,
    },
}

/// Why a KV shard is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KvError {
    /// Rows outside the shard's layers, or of a kind that the layer does not have.
    #[error("layer {layer} {kind}: expected a layer and kind of {span}, found none")]
    Unknown {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// The shard.
        span: LayerSpan,
    },
    /// Rows that do not continue those already there.
    #[error("layer {layer} {kind}: expected row {expected} next, found row {found}")]
    Order {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// The row that comes next.
        expected: u64,
        /// The row given.
        found: u64,
    },
    /// Not whole rows.
    #[error("layer {layer} {kind}: expected whole rows of {row} bytes, found {found} bytes")]
    Size {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// Bytes per row.
        row: usize,
        /// Bytes given.
        found: usize,
    },
    /// More rows than the session may hold.
    #[error("layer {layer} {kind}: expected at most {most} rows, found {found}")]
    Limit {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// Rows allowed.
        most: u64,
        /// Rows after this write.
        found: u64,
    },
    /// Bytes that no row has.
    #[error("layer {layer} {kind} row {row}: {source}")]
    Row {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// The row.
        row: u64,
        /// What is wrong with it.
        source: RowError,
    },
    /// A state value that is infinite or no number.
    #[error("layer {layer} {kind} row {row}: expected finite numbers, found {found}")]
    State {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// The row.
        row: u64,
        /// The value.
        found: String,
    },
    /// A shard whose rows do not add up to its frontier.
    #[error("layer {layer} {kind}: expected rows {expected:?} at frontier {frontier}, found {found:?}")]
    Rows {
        /// The layer.
        layer: usize,
        /// The kind.
        kind: KvKind,
        /// The frontier, in tokens.
        frontier: u64,
        /// Rows that the frontier implies.
        expected: std::ops::Range<u64>,
        /// Rows present.
        found: std::ops::Range<u64>,
    },
    /// Shards that do not belong together.
    #[error("{field}: expected {expected}, found {found} in the shard of layers {span}")]
    Mismatch {
        /// What differs.
        field: &'static str,
        /// The value of the others.
        expected: String,
        /// The value here.
        found: String,
        /// Which shard.
        span: LayerSpan,
    },
    /// Layers without KV.
    #[error("layers: expected a shard that starts at layer {expected}, found {found}")]
    Incomplete {
        /// First layer without KV.
        expected: usize,
        /// What comes instead.
        found: String,
    },
}
