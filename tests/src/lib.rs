//! What the process-level tests share: the `ds4` binary, a synthetic model, token streams.
//!
//! The tests themselves live in `tests/tests`, one file per behaviour.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// The `ds4` binary that this build produced, beside the test binaries.
///
/// # Errors
/// When it was not built: `cargo test --workspace` does; `cargo test -p ds4-tests` alone does not.
pub fn ds4() -> Result<PathBuf> {
    let test = std::env::current_exe().context("the test binary's own path")?;
    let profile = test
        .ancestors()
        .nth(2)
        .context("a test binary lies in target/<profile>/deps")?;
    let binary = profile.join("ds4");
    ensure!(
        binary.exists(),
        "{} is missing: run `cargo build -p ds4-cli` first",
        binary.display()
    );
    Ok(binary)
}

/// Runs `ds4` with `arguments` to its end.
///
/// # Errors
/// When it cannot be started, or ends with a failure: then its stderr is in the error.
pub fn run_ds4<I, S>(arguments: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let output = ds4_output(arguments)?;
    ensure!(
        output.status.success(),
        "ds4 ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Runs `ds4` with `arguments` to its end, whatever that end is.
///
/// # Errors
/// When it cannot be started.
pub fn ds4_output<I, S>(arguments: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    Command::new(ds4()?)
        .args(arguments)
        .output()
        .context("starting ds4")
}

/// Writes a synthetic model into `folder` through the program's own command.
///
/// # Errors
/// When `ds4 synth` fails.
pub fn synth(folder: &Path, preset: &str, seed: u64, settings: &[&str]) -> Result<PathBuf> {
    let path = folder.join(format!("{preset}-{seed}.gguf"));
    let mut arguments = vec!["synth".to_owned(), "--preset".to_owned(), preset.to_owned()];
    arguments.extend([
        "--seed".to_owned(),
        seed.to_string(),
        "--out".to_owned(),
        path.display().to_string(),
    ]);
    for setting in settings {
        arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    run_ds4(arguments)?;
    Ok(path)
}

/// A reproducible token stream with ids in `3..vocab - 8`: plain tokens of a synthetic model, no specials.
///
/// The generator is the linear congruential one of Numerical Recipes (1664525, 1013904223).
#[must_use]
pub fn tokens(count: usize, vocab: u32, seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            3 + (state >> 8) % (vocab - 11)
        })
        .collect()
}

/// Writes token ids as the JSON array that `ds4 logits` and `ds4 run` read.
///
/// # Errors
/// When the file cannot be written.
pub fn write_tokens(path: &Path, tokens: &[u32]) -> Result<()> {
    std::fs::write(path, serde_json::to_vec(tokens)?).with_context(|| format!("writing {}", path.display()))
}
