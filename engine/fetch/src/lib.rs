//! Brings a model to a node: only the bytes that a stage needs where the server can send ranges, resumed after any kind of end.
//!
//! [`fetch`] is the whole job. A file is cut into pieces, a pure function of its header; a piece is what is asked for,
//! checked, and recorded in the journal beside the file. The file keeps its full length, holes included, so it is a GGUF file that any stage opens;
//! [`ensure_covers`] refuses layers that were not fetched.

mod coverage;
mod error;
mod fetch;
mod journal;
mod manifest;
mod pieces;
mod progress;
mod remote;
mod report;
mod source;
mod target;
mod transfer;

pub use coverage::ensure_covers;
pub use error::FetchError;
pub use fetch::{FetchOptions, Fetched, Verified, fetch, manifest as read_manifest};
pub use manifest::Manifest;
pub use progress::{Phase, Progress, Snapshot};
pub use report::{keep_file, serve};
pub use source::{Access, DEFAULT_ENDPOINT, Source};
