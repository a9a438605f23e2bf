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
        vec![
            "logits".into(),
            "--model".into(),
            text(path),
            "--tokens".into(),
            text(&prompt),
            "--out".into(),
            out,
        ],
    ] {
        let output = ds4_output(&arguments)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code().is_some_and(|code| code != 0),
            "{arguments:?} ended with {}",
            output.status
        );
        ensure!(!message.contains("panicked"), "{arguments:?} panicked: {message}");
        for fragment in fragments {
            ensure!(
                message.contains(fragment),
                "{arguments:?}: {fragment:?} is not in: {message}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_empty_file_a_picture_and_a_wrong_magic_are_refused() -> Result<()> {
    let files = Files::new()?;
    refused(&files.write("empty.gguf", b"")?, &["empty.gguf"])?;
    refused(
        &files.write(
            "picture.gguf",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02",
        )?,
        &["PNG"],
    )?;
    let mut wrong = files.good.clone();
    wrong[..4].copy_from_slice(b"GGML");
    refused(&files.write("magic.gguf", &wrong)?, &["magic", "GGUF"])
}

#[test]
fn a_tensor_count_beyond_the_file_is_refused() -> Result<()> {
    let files = Files::new()?;
    let mut hostile = files.good.clone();
    hostile[TENSOR_COUNT..TENSOR_COUNT + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    refused(
        &files.write("count.gguf", &hostile)?,
        &["tensor", &(1u64 << 60).to_string()],
    )
}

#[test]
fn a_file_cut_at_any_page_of_its_first_megabyte_is_refused() -> Result<()> {
    let files = Files::new()?;
    for length in (0..=1 << 20).step_by(4096) {
        refused(&files.write("cut.gguf", &files.good[..length])?, &[])?;
    }
    Ok(())
}

/// Where the record of a tensor goes on after its name: dimension count (4), dimensions (8 each), type (4), offset (8).
fn record(bytes: &[u8], name: &str) -> Result<usize> {
    let at = bytes
        .windows(name.len())
        .position(|window| window == name.as_bytes());
    Ok(at.ok_or_else(|| anyhow::anyhow!("{name} is not in the header"))? + name.len())
}

fn patched(good: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut broken = good.to_vec();
    broken[at..at + bytes.len()].copy_from_slice(bytes);
    broken
}

#[test]
fn a_tensor_of_another_shape_type_place_or_name_is_refused_by_name() -> Result<()> {
    let files = Files::new()?;
    // A matrix has two dimensions: 256 columns and 32 rows in the micro model.
    let name = "blk.1.attn_q_a.weight";
    let at = record(&files.good, name)?;
    let (rows, kind, offset) = (at + 4 + 8, at + 4 + 16, at + 4 + 16 + 4);
    let fewer_rows = patched(&files.good, rows, &16_u64.to_le_bytes());
    refused(
        &files.write("shape.gguf", &fewer_rows)?,
        &[name, "[256, 32]", "[256, 16]"],
    )?;
    let unknown_type = patched(&files.good, kind, &30_u32.to_le_bytes());
    refused(
        &files.write("type.gguf", &unknown_type)?,
        &[name, "Q8_0", "type id 30"],
    )?;
    // F16 in place of Q8_0 makes the record longer than its place: it reaches into the next tensor.
    let longer = patched(&files.good, kind, &1_u32.to_le_bytes());
    refused(&files.write("longer.gguf", &longer)?, &[name, "overlap"])?;
    let same_place = patched(&files.good, offset, &0_u64.to_le_bytes());
    refused(&files.write("overlap.gguf", &same_place)?, &[name, "overlap"])?;
    let beyond = patched(&files.good, offset, &(1_u64 << 40).to_le_bytes());
    refused(&files.write("beyond.gguf", &beyond)?, &[name, "truncated"])?;
    let renamed = patched(&files.good, at - 1, b"x");
    refused(&files.write("missing.gguf", &renamed)?, &[name, "found nothing"])
}
