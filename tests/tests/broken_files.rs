//! Broken model files end in one clear error, from `ds4 inspect` and from a load, never in a panic.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use ds4_tests::{ds4_output, synth, tokens, write_tokens};

/// Where the tensor count stands in a GGUF v3 header: after magic (4) and version (4).
const TENSOR_COUNT: usize = 8;

struct Files {
    folder: tempfile::TempDir,
    good: Vec<u8>,
}

impl Files {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let good = std::fs::read(synth(folder.path(), "micro", 3, &[])?)?;
        Ok(Self { folder, good })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// Both ways a person meets a file: looking at it and loading it.
fn refused(path: &Path, fragments: &[&str]) -> Result<()> {
    let prompt = path.with_extension("json");
    write_tokens(&prompt, &tokens(4, 280, 1))?;
    let text = |p: &Path| p.display().to_string();
    let out = text(&path.with_extension("f32"));
    for arguments in [
        vec!["inspect".to_owned(), text(path)],
        vec!["logits".into(), "--model".into(), text(path), "--tokens".into(), text(&prompt), "--out".into(), out],
    ] {
        let output = ds4_output(&arguments)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code().is_some_and(|code| code != 0), "{arguments:?} ended with {}", output.status);
        ensure!(!message.contains("panicked"), "{arguments:?} panicked: {message}");
        for fragment in fragments {
            ensure!(message.contains(fragment), "{arguments:?}: {fragment:?} is not in: {message}");
        }
    }
    Ok(())
}

#[test]
fn an_empty_file_a_picture_and_a_wrong_magic_are_refused() -> Result<()> {
    let files = Files::new()?;
    refused(&files.write("empty.gguf", b"")?, &["empty.gguf"])?;
    refused(&files.write("picture.gguf", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02")?, &["PNG"])?;
    let mut wrong = files.good.clone();
    wrong[..4].copy_from_slice(b"GGML");
    refused(&files.write("magic.gguf", &wrong)?, &["magic", "GGUF"])
}

#[test]
fn a_tensor_count_beyond_the_file_is_refused() -> Result<()> {
    let files = Files::new()?;
    let mut hostile = files.good.clone();
    hostile[TENSOR_COUNT..TENSOR_COUNT + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    refused(&files.write("count.gguf", &hostile)?, &["tensor", &(1u64 << 60).to_string()])
}

#[test]
fn a_file_cut_at_any_page_of_its_first_megabyte_is_refused() -> Result<()> {
    let files = Files::new()?;
    for length in (0..=1 << 20).step_by(4096) {
        refused(&files.write("cut.gguf", &files.good[..length])?, &[])?;
    }
    Ok(())
}
