//! Programs of this repository as they are released, to be measured.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::progress::step;
use crate::{process, repository};

/// Builds a program with optimisation and returns its path. `arguments` choose it, `place` is where it lies under `release`.
///
/// # Errors
/// When it does not compile.
pub fn program(what: &str, arguments: &[&str], place: &str) -> Result<PathBuf> {
    let log = repository::cache().join(format!("released/{what}.log"));
    step(&format!("building {what} with optimisation"), || {
        process::logged(
            Command::new(env!("CARGO"))
                .args(["build", "--release"])
                .args(arguments)
                .current_dir(repository::root()),
            &log,
        )
    })?;
    Ok(repository::target().join("release").join(place))
}
