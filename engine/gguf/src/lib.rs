//! GGUF v3 files of the DeepSeek V4 family: checked before anything is believed, mapped only where a stage needs it.
//!
//! [`Gguf::open`] reads the header; [`ModelConfig::from_gguf`] types its metadata; [`tensors::check`] compares every tensor with the shape that
//! the config implies; [`Weights::map`] maps the byte ranges of one [`LayerSpan`].

mod config;
mod cursor;
mod error;
mod file;
mod metadata;
mod span;
pub mod tensors;
mod weights;

pub use config::{HyperConfig, IndexerConfig, ModelConfig, RopeConfig};
pub use error::GgufError;
pub use file::{Fingerprint, Gguf, TensorInfo};
pub use metadata::{Metadata, Value};
pub use span::{LayerSpan, SpanError};
pub use weights::{TensorView, Weights};
