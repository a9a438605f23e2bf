//! Why a vocabulary cannot be used.

use ds4_gguf::GgufError;
use thiserror::Error;

/// A vocabulary that cannot be used, and why.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The metadata is missing or of another type.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A value is not what it must be.
    #[error("{key}: expected {expected}, found {found}")]
    Unexpected {
        /// The metadata key.
        key: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Tokens and merges do not go together.
    #[error("tokenizer.ggml.merges: {0}")]
    Merges(String),
}
