//! Why a file is refused: the key or tensor, what was expected, what was found.

use std::path::PathBuf;

use thiserror::Error;

/// A file that cannot be used, and why.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a GGUF file at all.
    #[error("magic: expected \"GGUF\", found {found}: this is not a GGUF model file")]
    Magic {
        /// The first bytes, readable.
        found: String,
    },
    /// Another version of the format.
    #[error("version: expected 3, found {found}: convert the file with a current gguf tool")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends inside something.
    #[error(
        "{what}: expected {needed} bytes at offset {offset}, found {left}: the file is truncated or corrupt"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes it takes.
        needed: u64,
        /// Where it starts.
        offset: u64,
        /// Bytes left in the file.
        left: u64,
    },
    /// A key or tensor is not what it must be.
    #[error("{name}: expected {expected}, found {found}")]
    Unexpected {
        /// Metadata key or tensor name.
        name: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A required key is absent.
    #[error(
        "metadata key {0}: expected it to be present, found nothing: this is no DeepSeek V4 file of the ds4 layout"
    )]
    MissingKey(String),
    /// A required tensor is absent.
    #[error(
        "tensor {0}: expected it to be present, found nothing: the file is incomplete or holds other layers"
    )]
    MissingTensor(String),
    /// Two tensors claim the same bytes.
    #[error(
        "tensors {first} and {second} overlap: expected {second} at offset {end} or later, found {offset}"
    )]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
        /// Where the first ends.
        end: u64,
        /// Where the second starts.
        offset: u64,
    },
}

impl GgufError {
    pub(crate) fn unexpected(name: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Unexpected {
            name: name.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
