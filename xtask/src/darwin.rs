//! `cargo xtask darwin`: the code for macOS, type-checked against the real standard library and Metal's real interface. Nothing is linked.

use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::process::{self, found};
use crate::progress::step;
use crate::repository;

const TARGET: &str = "aarch64-apple-darwin";
/// Crates whose dependencies need no C compiler of Apple's.
const CRATES: [&str; 3] = ["ds4-kernels-metal", "ds4-model-metal", "ds4-kernels-cpu"];

/// Checks the crates, then that a planted type error in the code for macOS is refused.
///
/// # Errors
/// With what the compiler says, or when it takes the planted error.
pub fn run() -> Result<()> {
    if found("rustup") {
        process::output(Command::new("rustup").args(["target", "add", TARGET]))?;
    }
    step(&format!("{} for {TARGET}", CRATES.join(", ")), || {
        let mut command = cargo("check");
        CRATES.iter().for_each(|name| {
            command.args(["--package", name]);
        });
        process::output(&mut command)
    })?;
    step("a planted type error is refused", refused)
}

/// The negative control: were the code for macOS left out, the error in it would not be found.
fn refused() -> Result<()> {
    let mut command = cargo("rustc");
    command.args(["--package", CRATES[0], "--lib", "--profile", "check"]);
    command.args(["--", "--cfg", "ds4_planted_type_error"]);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "the planted type error was taken");
    if !(said.contains("E0308") && said.contains("apple.rs")) {
        bail!("expected error E0308 in apple.rs, found:\n{said}");
    }
    Ok(())
}

fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([command, "--quiet", "--target", TARGET, "--target-dir"]);
    cargo
        .arg(repository::target().join("darwin"))
        .current_dir(repository::root());
    cargo
}
