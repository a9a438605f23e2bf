//! Small files: whole or not at all, and for their owner only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Opens a file for its owner only, to append or to begin anew.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn private(path: &Path, append: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if append {
        options.append(true);
    } else {
        options.write(true).truncate(true);
    }
    options
        .open(path)
        .with_context(|| format!("writing {}", path.display()))
}

/// Writes text, whole or not at all, for its owner only.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn save(path: &Path, text: &[u8]) -> Result<()> {
    let unfinished = path.with_added_extension("unfinished");
    private(&unfinished, false)?.write_all(text)?;
    std::fs::rename(&unfinished, path).with_context(|| format!("writing {}", path.display()))
}

/// Writes a value as JSON.
///
/// # Errors
/// As [`save`].
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    save(path, &serde_json::to_vec(value)?)
}

/// Reads a value, or none where there is no file.
///
/// # Errors
/// When the file holds something else.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    Ok(Some(value))
}
