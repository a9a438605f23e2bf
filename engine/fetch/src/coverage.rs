//! Whether a file on disk holds what a stage is about to load. A hole reads as zeros, and a stage must never compute with those.

use std::path::Path;

use ds4_gguf::{Gguf, LayerSpan, ModelConfig};

use crate::pieces::Pieces;
use crate::target::journal_of;
use crate::{FetchError, journal};

/// Refuses layers that `ds4 fetch` did not bring. A file without a journal was not fetched in parts and is left to other checks.
///
/// # Errors
/// Names the layers, the bytes they take and the bytes that are there.
pub fn ensure_covers(gguf: &Gguf, config: &ModelConfig, span: LayerSpan) -> Result<(), FetchError> {
    let Some((_, recorded)) = journal::read(&journal_of(gguf.path())) else {
        return Ok(());
    };
    let pieces = Pieces::of(gguf);
    let wanted = pieces.wanted(gguf, config, span)?;
    let mut there = vec![false; wanted.len()];
    for (piece, _) in recorded {
        if let Some(there) = there.get_mut(piece) {
            *there = wanted[piece];
        }
    }
    let (expected, found) = (pieces.bytes(&wanted), pieces.bytes(&there));
    if expected == found {
        return Ok(());
    }
    Err(FetchError::Uncovered {
        path: gguf.path().to_owned(),
        span: span.to_string(),
        expected,
        found,
    })
}

/// Refuses a file that is here in part only.
pub(crate) fn ensure_whole(path: &Path) -> Result<(), FetchError> {
    let gguf = Gguf::open(path)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    ensure_covers(&gguf, &config, LayerSpan::full(config.n_layer))
}
