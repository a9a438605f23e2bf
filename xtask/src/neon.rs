//! `cargo xtask neon`: the CPU back end's tests, and a model's, built for Linux on aarch64 and run on emulated processors that have more and
//! more of the instructions it looks for. Bits are compared; no speed is measured.

mod count;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, found};
use crate::progress::step;
use crate::sanitize::{executables, sizes};
use crate::{repository, tools};

/// Needs no C compiler and no linker but Rust's own: musl comes with the target.
const TARGET: &str = "aarch64-unknown-linux-musl";
/// User-mode emulation, of Debian's package `qemu-user`.
const QEMU: &str = "qemu-aarch64";
/// Compares the best level with the reference; the model's other tests are about what is the same at every level.
const OF_MODEL: &str = "threads_and_vectors_change_no_bit";

/// An emulated processor.
struct Processor {
    /// QEMU's name.
    name: &'static str,
    /// What the back end has to find there.
    level: &'static str,
    /// Fewer and smaller cases: the last processor runs the functions of all levels in full.
    short: bool,
}

/// Without dot products, without matrices of bytes, with all.
const PROCESSORS: [Processor; 3] = [
    processor("cortex-a72", "scalar", true),
    processor("neoverse-n1", "neon", true),
    processor("max", "i8mm", false),
];

const fn processor(name: &'static str, level: &'static str, short: bool) -> Processor {
    Processor { name, level, short }
}

/// Builds the tests and runs them on each processor; with `count`, counts a product's instructions instead.
///
/// # Errors
/// When the emulator or the target is missing and cannot be installed, or a test fails.
pub fn run(count: bool) -> Result<()> {
    if found("rustup") {
        process::output(Command::new("rustup").args(["target", "add", TARGET]))?;
    }
    if !found(QEMU) {
        tools::install(&["qemu-user"])?;
    }
    if count {
        return count::run();
    }
    let kernels = step("the kernels' tests", || {
        build("ds4-kernels-cpu", &["--lib", "--tests"])
    })?;
    for processor in &PROCESSORS {
        step(
            &format!("the kernels on {} ({})", processor.name, processor.level),
            || {
                kernels
                    .iter()
                    .try_for_each(|program| emulate(program, processor, None))
            },
        )?;
    }
    let model = step("the model's tests", || build("ds4-model", &["--test", "it"]))?;
    let [.., best] = &PROCESSORS;
    step(&format!("a model on {} ({})", best.name, best.level), || {
        model
            .iter()
            .try_for_each(|program| emulate(program, best, Some(OF_MODEL)))
    })
}

fn build(package: &str, programs: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo("test");
    cargo
        .args(["--no-run", "--message-format=json", "--package", package])
        .args(programs);
    let programs = executables(&process::output(&mut cargo)?)?;
    ensure!(!programs.is_empty(), "cargo built no tests of {package}");
    Ok(programs)
}

fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args([command, "--target", TARGET, "--target-dir"])
        .arg(target())
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .current_dir(repository::root());
    cargo
}

fn target() -> PathBuf {
    repository::target().join("neon")
}

fn emulate(program: &Path, processor: &Processor, only: Option<&str>) -> Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let log = repository::cache().join(format!("neon/{}-{name}.log", processor.name));
    let mut qemu = Command::new(QEMU);
    qemu.args(["-cpu", processor.name]).arg(program).args(only);
    // A test asserts it: no processor is tested as another.
    qemu.env("DS4_EXPECTED_LEVEL", processor.level);
    sizes(&mut qemu, processor.short);
    process::logged(&mut qemu, &log).with_context(|| format!("{name} on {}", processor.name))?;
    let said = std::fs::read_to_string(&log)?;
    ensure!(!said.contains("running 0 tests"), "{name} has no test {only:?}");
    Ok(())
}
