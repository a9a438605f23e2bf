//! `cargo xtask formats`: random blocks of every quantised format against gguf-py, an implementation that shares nothing with ours.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::process;
use crate::progress::step;
use crate::{python, repository};

/// Compares the blocks of `seed`, by default of the clock.
///
/// # Errors
/// When a value differs: then with the seed that gives it again.
pub fn run(seed: Option<u64>) -> Result<()> {
    let seed = seed.map_or_else(
        || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map(|time| time.as_secs())
        },
        Ok,
    )?;
    let python = python::environment("gguf", &["gguf==0.19.0"])?;
    let folder = repository::cache().join("formats");
    std::fs::create_dir_all(&folder)?;
    let script = repository::root().join("tests/oracle/blocks.py");
    process::output(
        Command::new(python)
            .arg(script)
            .arg(&folder)
            .arg(seed.to_string()),
    )?;
    step(
        &format!("fresh blocks against gguf-py (--seed {seed} repeats them)"),
        || {
            process::output(
                Command::new(env!("CARGO"))
                    .args([
                        "test",
                        "--package",
                        "ds4-kernels",
                        "--test",
                        "fresh",
                        "--",
                        "--ignored",
                    ])
                    .env("DS4_FRESH_BLOCKS", &folder)
                    .current_dir(repository::root()),
            )
        },
    )?;
    Ok(())
}
