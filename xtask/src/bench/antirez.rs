//! antirez/ds4, the program that this project's files come from: its CPU path, built from a checkout that the caller has.
//!
//! Its source knows the shapes of one published model as numbers; in the copy that is built they are those of the measured file. Nothing else
//! is changed, and nothing of it is kept in this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::child;
use crate::process::{self, found};
use crate::progress::step;
use crate::repository;

/// Its constants, and the fields of `ds4 inspect --json` that they are set to.
const SHAPES: [(&str, &str); 16] = [
    ("DS4_N_LAYER", "n_layer"),
    ("DS4_N_EMBD", "n_embd"),
    ("DS4_N_VOCAB", "n_vocab"),
    ("DS4_N_HEAD", "n_head"),
    ("DS4_N_HEAD_DIM", "head_dim"),
    ("DS4_N_VALUE_DIM", "head_dim"),
    ("DS4_N_ROT", "n_rot"),
    ("DS4_N_OUT_GROUP", "o_groups"),
    ("DS4_N_LORA_Q", "q_lora"),
    ("DS4_N_LORA_O", "o_lora"),
    ("DS4_N_EXPERT", "n_expert"),
    ("DS4_N_EXPERT_USED", "n_used"),
    ("DS4_N_FF_EXP", "n_ff"),
    ("DS4_N_HASH_LAYER", "n_hash"),
    ("DS4_N_INDEXER_HEAD", "indexer_heads"),
    ("DS4_N_INDEXER_TOP_K", "indexer_top_k"),
];
/// Numbers that its functions repeat instead of the constants.
const REPEATED: [(&str, &str); 2] = [
    (
        "const uint32_t rank = 1024;",
        "const uint32_t rank = DS4_N_LORA_O;",
    ),
    (
        "const uint32_t n_groups = 8;",
        "const uint32_t n_groups = DS4_N_OUT_GROUP;",
    ),
];
/// Objects of its benchmark without a GPU, as its Makefile names them.
const OBJECTS: [&str; 2] = ["ds4_bench_cpu.o", "ds4_cpu.o"];

/// Its benchmark program.
pub struct Antirez {
    folder: PathBuf,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Of the prompt.
    pub prefill: f64,
    /// Of what was generated behind it.
    pub decode: f64,
}

impl Antirez {
    /// Copies `checkout`, sets its shapes to those that `inspected` has, and builds its CPU benchmark.
    ///
    /// # Errors
    /// When the checkout is another program, a constant is not where it was, or it does not compile.
    pub fn build(checkout: &Path, inspected: &Value) -> Result<Self> {
        for (program, package) in [("make", "make"), ("cc", "build-essential")] {
            ensure!(
                found(program),
                "{program} is missing: on Debian, as root: apt-get install {package}"
            );
        }
        let folder = repository::cache().join("bench/antirez-ds4");
        std::fs::create_dir_all(&folder)?;
        copy_sources(checkout, &folder)?;
        let main = folder.join("ds4.c");
        let source = std::fs::read_to_string(checkout.join("ds4.c"))
            .with_context(|| format!("--ds4 {}: expected a checkout of antirez/ds4", checkout.display()))?;
        let source = with_shapes(&source, inspected)?;
        if std::fs::read_to_string(&main).is_ok_and(|built| built == source)
            && folder.join("ds4-bench").exists()
        {
            return Ok(Self { folder });
        }
        std::fs::write(&main, source)?;
        step("building the CPU path of antirez/ds4", || compile(&folder))?;
        Ok(Self { folder })
    }

    /// A prompt of `tokens` tokens, and `generate` tokens behind it.
    ///
    /// # Errors
    /// When it fails or prints something else than its results.
    pub fn speed(&self, model: &Path, threads: usize, tokens: usize, generate: usize) -> Result<Speed> {
        let prompt = self.folder.join("prompt.txt");
        std::fs::write(&prompt, text(4 * tokens))?;
        let mut command = Command::new(self.folder.join("ds4-bench"));
        command
            .arg("--cpu")
            .arg("-m")
            .arg(model)
            .arg("--prompt-file")
            .arg(prompt);
        for (flag, value) in [
            ("-t", threads),
            ("--ctx-start", tokens),
            ("--ctx-max", tokens),
            ("--gen-tokens", generate),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        command.env("DS4_LOCK_FILE", self.folder.join("lock"));
        read(&child::run(&mut command)?.stdout)
    }
}

/// Only what its benchmark is compiled from; the rest of a checkout may be large, or absent.
fn copy_sources(checkout: &Path, folder: &Path) -> Result<()> {
    let listed = std::fs::read_dir(checkout).with_context(|| format!("--ds4 {}", checkout.display()))?;
    for entry in listed {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let source = path
            .extension()
            .is_some_and(|kind| kind == "c" || kind == "h" || kind == "inc");
        if (source && name != "ds4.c") || name == "Makefile" {
            std::fs::copy(&path, folder.join(name))?;
        }
    }
    Ok(())
}

fn with_shapes(source: &str, inspected: &Value) -> Result<String> {
    let mut lines: Vec<String> = source.lines().map(str::to_owned).collect();
    for (constant, field) in SHAPES {
        let value = inspected[field].as_u64();
        let value = value.with_context(|| format!("ds4 inspect printed no {field}"))?;
        let line = lines
            .iter_mut()
            .find(|line| {
                line.trim()
                    .strip_prefix(constant)
                    .is_some_and(|rest| rest.trim_start().starts_with("= "))
            })
            .with_context(|| format!("ds4.c: expected a constant {constant}, found none"))?;
        *line = format!("    {constant} = {value},");
    }
    let joined = lines.join("\n") + "\n";
    Ok(REPEATED
        .iter()
        .fold(joined, |text, (number, name)| text.replace(number, name)))
}

fn compile(folder: &Path) -> Result<()> {
    let log = folder.join("build.log");
    process::logged(Command::new("make").args(OBJECTS).current_dir(folder), &log)?;
    let mut link = Command::new("cc");
    link.args(["-o", "ds4-bench"])
        .args(OBJECTS)
        .args(["-lm", "-pthread"]);
    process::logged(link.current_dir(folder), &folder.join("link.log"))
}

/// Letters and spaces without a pattern: at most as many tokens, and with a small vocabulary not many fewer.
fn text(letters: usize) -> String {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b"abcdefghijklmnopqrstuvwxyz "[(seed >> 33) as usize % 27])
    };
    (0..letters).map(|_| next()).collect()
}

/// The row of its table: `ctx_tokens,prefill_tokens,prefill_tps,gen_tokens,gen_tps,...`.
fn read(table: &str) -> Result<Speed> {
    let mut lines = table.lines();
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        bail!("expected a table with one row, found:\n{table}");
    };
    let column = |name: &str| -> Result<f64> {
        let at = names.split(',').position(|found| found == name);
        at.and_then(|at| values.split(',').nth(at)?.parse().ok())
            .filter(|value: &f64| value.is_finite() && *value > 0.0)
            .with_context(|| format!("expected a number above 0 as {name}, found:\n{table}"))
    };
    Ok(Speed {
        prefill: column("prefill_tps")?,
        decode: column("gen_tps")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_by_its_columns_names() -> Result<()> {
        let table = "ctx_tokens,prefill_tokens,prefill_tps,gen_tokens,gen_tps,kvcache_bytes\n128,128,5.30,8,4.80,99\n";
        assert_eq!(
            read(table)?,
            Speed {
                prefill: 5.3,
                decode: 4.8
            }
        );
        assert!(read("ctx_tokens\n").is_err() && read("a,b\n1,2\n").is_err());
        Ok(())
    }

    #[test]
    fn every_shape_is_set_and_a_missing_one_is_named() {
        let mut source: String = SHAPES
            .iter()
            .map(|(constant, _)| format!("    {constant}   = 1,\n"))
            .collect();
        source += REPEATED[0].0;
        let mut inspected: Value = SHAPES
            .iter()
            .map(|(_, field)| ((*field).to_owned(), Value::from(7)))
            .collect();
        inspected["n_layer"] = 5.into();
        let found = with_shapes(&source, &inspected).expect("all constants");
        assert!(found.contains("DS4_N_LAYER = 5,") && found.contains("DS4_N_LORA_O = 7,"));
        assert!(
            found.contains("rank = DS4_N_LORA_O;") && !found.contains("= 1,"),
            "{found}"
        );
        let error = with_shapes("int x;", &inspected).expect_err("no constants");
        assert!(error.to_string().contains("DS4_N_LAYER"), "{error}");
    }
}
