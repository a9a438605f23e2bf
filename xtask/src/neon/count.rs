//! Instructions of a product in the emulator: what can be said of its speed without a processor. It says nothing of caches, ports and latencies.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{QEMU, TARGET, cargo, target};
use crate::process;
use crate::progress::step;

const FORMATS: [&str; 5] = ["Q8_0", "MXFP4", "Q2_K", "Q4_K", "IQ2_XXS"];
const LEVELS: [&str; 2] = ["neon", "i8mm"];
/// Mat-vec, rows as they lie times tokens beside each other (`Q8_0`), tiles.
const TOKENS: [usize; 3] = [1, 8, 64];
const ROWS: usize = 64;
const COLUMNS: usize = 2048;

/// Prints a table: instructions per multiply-add of bytes, and how many of them multiply.
///
/// # Errors
/// When something does not build or run.
pub(super) fn run() -> Result<()> {
    let plugin = step("the plugin that counts", plugin)?;
    let program = step("the product, optimised", program)?;
    crate::ask::print("| format | level | tokens | instructions per multiply-add | of them sdot or smmla |")?;
    crate::ask::print("|---|---|---|---|---|")?;
    for format in FORMATS {
        for level in LEVELS {
            for tokens in TOKENS {
                let [all, products] = one(&plugin, &program, [level, format], tokens)?;
                let share = 100.0 * products / all;
                let each = all / (ROWS * COLUMNS * tokens) as f64;
                crate::ask::print(&format!(
                    "| {format} | {level} | {tokens} | {each:.3} | {share:.0} % |"
                ))?;
            }
        }
    }
    Ok(())
}

/// Both counts of one product: what the program does besides is the same however often it multiplies.
fn one(plugin: &Path, program: &Path, what: [&str; 2], tokens: usize) -> Result<[f64; 2]> {
    let counts = |times: usize| -> Result<[f64; 2]> {
        let mut qemu = Command::new(QEMU);
        qemu.args(["-cpu", "max", "-plugin"]).arg(plugin).arg(program);
        qemu.args(what)
            .args([ROWS, COLUMNS, tokens, times].map(|number| number.to_string()));
        let said = process::output(&mut qemu)?;
        let mut counts = said.split_whitespace().map(str::parse::<f64>);
        let mut next = || counts.next().context("a count of the plugin")?.context("a count");
        Ok([next()?, next()?])
    };
    let (once, twice) = (counts(1)?, counts(2)?);
    ensure!(twice[0] > once[0], "no instruction in a product of {what:?}");
    Ok([twice[0] - once[0], twice[1] - once[1]])
}

fn plugin() -> Result<PathBuf> {
    let plugin = target().join("count.so");
    std::fs::create_dir_all(target())?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&plugin)
        .arg(crate::repository::root().join("xtask/src/neon/count.c"));
    process::output(&mut cc)?;
    Ok(plugin)
}

fn program() -> Result<PathBuf> {
    process::output(cargo("build").args([
        "--release",
        "--package",
        "ds4-kernels-cpu",
        "--example",
        "product",
    ]))?;
    Ok(target().join(TARGET).join("release/examples/product"))
}
