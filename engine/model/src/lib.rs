//! The DeepSeek V4 graph on one run of layers, and its KV: what a stage computes and what travels to the output pod.
//!
//! [`ModelSlice`] is what the rest of the engine sees. [`Graph`] implements it for every [`ds4_kernels::Backend`].
//! Logits are a function of the token sequence alone: no operation looks at chunk, batch or thread.

mod attend;
mod attention;
mod checkpoint;
pub mod choice;
mod complete;
mod compress;
mod draft;
mod error;
mod feed_forward;
mod graph;
mod hidden;
mod hyper;
mod kv;
mod layer;
mod layout;
mod matrix;
pub mod memory;
mod numerics;
mod pass;
pub mod plan;
pub mod sampling;
mod select;
mod slice;
mod staging;
pub mod stop;
mod token_hash;
mod trial;

/// Tensors by name, for back ends that load the file themselves.
pub mod tensor {
    pub use crate::layer::table as expert_table;
    pub use crate::matrix::{matrix, vector};
}

pub use checkpoint::Checkpoint;
pub use complete::CompleteKv;
pub use draft::Drafter;
pub use error::{KvError, ModelError};
pub use graph::{Graph, ropes};
pub use hidden::Hidden;
pub use kv::{Kv, NewRows, OnDevice};
pub use layout::{KvKind, KvLayout};
pub use numerics::Numerics;
pub use pass::{Part, in_passes};
pub use slice::{ModelSlice, SliceInfo, check_span};
pub use staging::KvStaging;
pub use token_hash::TokenHash;
