//! Random models of the DeepSeek V4 architecture: small enough for tests, with every kind of layer, and well conditioned, so that logits
//! differ from token to token.
//!
//! Every weight is a pure function of the seed, the tensor's name and the index, so two pods that write the same model have the same bytes.

mod dims;
mod header;
mod model;
mod noise;
mod tensor;
mod vocabulary;

pub use dims::{Dims, DimsError, Experts, Preset};

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use thiserror::Error;

/// Why a model was not written.
#[derive(Debug, Error)]
pub enum SynthError {
    /// The dimensions do not make a model.
    #[error(transparent)]
    Dims(#[from] DimsError),
    /// The file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Writes the model to `path`: beside it first, renamed when complete. `progress(done, total)` in bytes. Returns the file's length.
///
/// # Errors
/// When the dimensions do not fit together or the file cannot be written.
pub fn write(path: &Path, dims: &Dims, progress: &mut dyn FnMut(u64, u64)) -> Result<u64, SynthError> {
    dims.check()?;
    let io = |source| SynthError::Io {
        path: path.display().to_string(),
        source,
    };
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let written = write_to(&partial, dims, progress)
        .and_then(|length| std::fs::rename(&partial, path).map(|()| length));
    if written.is_err() {
        // What is left of a failed attempt helps nobody; the first error is the one to report.
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(io)
}

/// Writes the model's header to `path` and leaves a hole of the right length for its weights: for what looks at shapes alone. Returns the length.
///
/// # Errors
/// As [`write()`].
pub fn outline(path: &Path, dims: &Dims) -> Result<u64, SynthError> {
    dims.check()?;
    let tensors = model::tensors(dims);
    let header = header::encode(dims, &tensors);
    let padded = tensors.iter().map(|tensor| header::padded(tensor.bytes()));
    let total = header.len() as u64 + padded.sum::<u64>();
    let written = File::create(path).and_then(|mut file| {
        file.write_all(&header)?;
        file.set_len(total)
    });
    let io = |source| SynthError::Io {
        path: path.display().to_string(),
        source,
    };
    written.map(|()| total).map_err(io)
}

fn write_to(path: &Path, dims: &Dims, progress: &mut dyn FnMut(u64, u64)) -> std::io::Result<u64> {
    let tensors = model::tensors(dims);
    let header = header::encode(dims, &tensors);
    let total = header.len() as u64
        + tensors
            .iter()
            .map(|tensor| header::padded(tensor.bytes()))
            .sum::<u64>();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&header)?;
    let mut done = header.len() as u64;
    progress(done, total);
    for tensor in &tensors {
        tensor.write(dims.seed, &mut |part| {
            out.write_all(part)?;
            done += part.len() as u64;
            progress(done, total);
            Ok(())
        })?;
        let padding = header::padded(tensor.bytes()) - tensor.bytes();
        out.write_all(&[0; 32][..usize::try_from(padding).unwrap_or(0)])?;
        done += padding;
    }
    progress(total, total);
    out.into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok(total)
}
