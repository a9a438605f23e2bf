//! `cargo xtask fuzz`: coverage-guided search for bytes that a decoder does not take well.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process;
use crate::progress::step;
use crate::repository;
use crate::sanitize::host;

/// What libFuzzer needs in the code under test: counters per edge, a table of their places, and the operands of comparisons.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Longest input; every format of the targets has its whole structure in a fraction of that.
const LONGEST: usize = 16 << 10;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The frames of a handoff, up to the commit.
    KvFrames,
    /// A session's file.
    SessionFile,
    /// A stage's description of itself.
    Describe,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::KvFrames => "kv_frames",
            Self::SessionFile => "session_file",
            Self::Describe => "describe",
        }
    }
}

/// Searches each of `targets`, or all, for `minutes`, from the corpus in the repository; `merge` then keeps there what covers more.
///
/// # Errors
/// With libFuzzer's report, when an input does harm: the input lies beside it.
pub fn run(targets: &[Target], minutes: u64, merge: bool) -> Result<()> {
    let targets = if targets.is_empty() {
        Target::value_variants()
    } else {
        targets
    };
    step("building the targets with coverage counters", build)?;
    for target in targets {
        let name = target.name();
        step(&format!("{name}: {minutes} minutes"), || search(name, minutes))?;
        if merge {
            step(&format!("{name}: keeping what covers more"), || keep(name))?;
        }
    }
    Ok(())
}

fn folder() -> PathBuf {
    repository::root().join("engine/runtime/fuzz")
}

fn built() -> PathBuf {
    repository::cache().join("fuzz/target")
}

fn found(name: &str) -> PathBuf {
    repository::cache().join("fuzz").join(name)
}

fn build() -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--release", "--target", &host()?, "--target-dir"])
        .arg(built())
        .current_dir(folder())
        .env("RUSTFLAGS", COVERAGE);
    process::logged(&mut command, &repository::cache().join("fuzz/build.log"))
}

fn program(name: &str) -> Result<Command> {
    Ok(Command::new(built().join(host()?).join("release").join(name)))
}

fn search(name: &str, minutes: u64) -> Result<()> {
    let folder_found = found(name);
    std::fs::create_dir_all(&folder_found)?;
    let mut command = program(name)?;
    command
        .arg(format!("-max_total_time={}", minutes * 60))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/harm-", found("").display()))
        .args([&folder_found, &folder().join("corpus").join(name)]);
    let log = found(&format!("{name}.log"));
    process::logged(&mut command, &log)?;
    let report = std::fs::read_to_string(&log)?;
    for line in report
        .lines()
        .filter(|line| line.starts_with("stat::number_of_executed") || line.starts_with("Done"))
    {
        eprintln!("    {line}");
    }
    Ok(())
}

/// The fewest inputs that cover what all cover, in place of the corpus; the seed stays.
fn keep(name: &str) -> Result<()> {
    let (corpus, next) = (folder().join("corpus").join(name), found(&format!("{name}-kept")));
    if next.exists() {
        std::fs::remove_dir_all(&next)?;
    }
    std::fs::create_dir_all(&next)?;
    let mut command = program(name)?;
    command
        .args(["-merge=1", "-print_final_stats=1"])
        .args([&next, &corpus, &found(name)]);
    process::logged(&mut command, &found(&format!("{name}-merge.log")))?;
    let files = std::fs::read_dir(&next)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(!files.is_empty(), "{name}: merging left nothing");
    for old in std::fs::read_dir(&corpus)? {
        let old = old?;
        if old.file_name() != "seed" {
            std::fs::remove_file(old.path())?;
        }
    }
    for file in files {
        move_to(&file.path(), &corpus)?;
    }
    Ok(())
}

fn move_to(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    std::fs::copy(file, folder.join(name))?;
    Ok(())
}
