//! `cargo xtask sanitize`: the tests of the crates with unsafe code, under tools that see what a test cannot.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::process::{self, found};
use crate::progress::step;
use crate::{repository, tools};

/// Crates with unsafe code of our own, and the crate whose scalar twins their tests call.
const UNSAFE: &[&str] = &["ds4-kernels", "ds4-kernels-cpu", "ds4-gguf"];
/// Miri cannot map files, so not `ds4-gguf`.
const UNMAPPED: &[&str] = &["ds4-kernels", "ds4-kernels-cpu"];
/// The instructions that Miri can be told to have; it has no processor to ask.
const MIRI_FEATURES: &str = "-Ctarget-feature=+avx2,+fma,+f16c";

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// AddressSanitizer: reads and writes outside of what was taken, at every instruction level of this machine.
    Address,
    /// Valgrind's memcheck: use of values never written, and leaks; at scalar and AVX2 level, as it knows no AVX-512.
    Valgrind,
    /// Miri: undefined behaviour and data races, in an interpreter; the scalar and AVX2 paths and the thread pool.
    Miri,
}

/// Runs the tools: by default all of them, or with `short` fewer and smaller cases and no Miri, as CI does.
///
/// # Errors
/// When a tool finds something, or is missing: then with the remedy.
pub fn run(tools: &[Tool], short: bool) -> Result<()> {
    let tools = match (tools, short) {
        ([], true) => &[Tool::Address, Tool::Valgrind],
        ([], false) => Tool::value_variants(),
        (named, _) => named,
    };
    for tool in tools {
        match tool {
            Tool::Address => step("AddressSanitizer", || address(short))?,
            Tool::Valgrind => step("Valgrind", || valgrind(short))?,
            Tool::Miri => step("Miri", || miri(short))?,
        }
    }
    Ok(())
}

/// The stable compiler has the sanitizer; only the flag is held back, hence `RUSTC_BOOTSTRAP`.
fn address(short: bool) -> Result<()> {
    let mut command = cargo(short);
    command
        .args(["test", "--lib", "--tests", "--target", &host()?, "--target-dir"])
        .arg(target("address"))
        .args(packages(UNSAFE))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address -Cforce-frame-pointers=yes");
    process::logged(&mut command, &log("address"))
}

fn valgrind(short: bool) -> Result<()> {
    if !found("valgrind") {
        tools::install(&["valgrind"])?;
    }
    let built = process::output(
        cargo(short)
            .args(["test", "--lib", "--tests", "--no-run", "--message-format=json"])
            .args(packages(UNSAFE)),
    )?;
    let programs = executables(&built)?;
    ensure!(!programs.is_empty(), "cargo built no tests of {UNSAFE:?}");
    for program in programs {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut command = Command::new("valgrind");
        // Threads in turn, or a spinning one starves the one it waits for.
        command.args([
            "--quiet",
            "--fair-sched=yes",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ]);
        command.arg(&program).args(["--test-threads", "1"]);
        sizes(&mut command, short);
        process::logged(&mut command, &log(&format!("valgrind-{name}")))
            .with_context(|| format!("valgrind on {name}"))?;
    }
    Ok(())
}

fn miri(short: bool) -> Result<()> {
    let there = Command::new("cargo")
        .args(["+nightly", "miri", "--version"])
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        let mut install = Command::new("rustup");
        install.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        install.args(["--component", "miri", "--component", "rust-src"]);
        process::logged(&mut install, &log("rustup"))
            .context("Miri is missing (leave it out: --tool address --tool valgrind)")?;
    }
    // The toolchain of this command would win over `+nightly` otherwise.
    let mut command = Command::new("cargo");
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC");
    sizes(&mut command, short);
    command
        .args(["+nightly", "miri", "test", "--lib", "--tests", "--target-dir"])
        .arg(target("miri"))
        .args(packages(UNMAPPED))
        .env("RUSTFLAGS", MIRI_FEATURES)
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .current_dir(repository::root());
    process::logged(&mut command, &log("miri"))
}

fn cargo(short: bool) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(repository::root());
    sizes(&mut command, short);
    command
}

/// Tests look at this where their full size would take a slow tool too long.
pub(crate) fn sizes(command: &mut Command, short: bool) {
    if short {
        command.env("DS4_SMALL_TESTS", "1").env("PROPTEST_CASES", "4");
    }
}

fn packages(names: &[&'static str]) -> Vec<&'static str> {
    names.iter().flat_map(|name| ["--package", name]).collect()
}

fn target(tool: &str) -> PathBuf {
    repository::target().join("sanitize").join(tool)
}

fn log(name: &str) -> PathBuf {
    repository::cache().join(format!("sanitize/{name}.log"))
}

/// With a named target, build scripts and macros are left alone.
pub(crate) fn host() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The test programs among cargo's messages.
pub(crate) fn executables(messages: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        if let Some(path) = message["executable"].as_str() {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() -> Result<()> {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnoise\n{\"executable\":\"/target/debug/deps/bits-1\"}\n";
        assert_eq!(
            executables(messages)?,
            [PathBuf::from("/target/debug/deps/bits-1")]
        );
        Ok(())
    }
}
