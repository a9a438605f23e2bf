//! Our engine, measured by its own `ds4 bench` in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::child::{self, Finished};
use crate::process;
use crate::progress::step;
use crate::{released, repository};

/// The program, built with optimisation.
pub struct Ds4 {
    program: PathBuf,
}

/// How it is run.
pub struct Setting<'a> {
    /// Model file.
    pub model: &'a Path,
    /// Threads.
    pub threads: usize,
    /// Tokens in a prefill chunk.
    pub chunk: usize,
}

/// What `ds4 bench --json` prints, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    /// Name of the back end, with its instructions and threads.
    pub backend: String,
    /// Opening and reading the file.
    pub load_seconds: f64,
    /// Weights mapped.
    pub weight_bytes: f64,
    /// KV at the end of the longest row.
    pub kv_bytes: f64,
    /// What a token costs at least.
    pub work_per_token: Work,
    /// The machine, when it was asked for.
    pub roofline: Option<Roofline>,
    /// The share of the int8 peak of vectors that the products alone reach, when it was asked for.
    pub matmul_share_of_int8_peak: Option<f64>,
    /// The rows.
    pub results: Vec<Row>,
}

/// Weights and operations of one token.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Work {
    dense_bytes: f64,
    expert_bytes: f64,
    experts_used: f64,
    /// 8-bit operations before the head.
    pub int8_operations: f64,
}

impl Work {
    /// Bytes of weights that one step of `batch` sessions touches, were routing uniform.
    #[must_use]
    pub fn bytes(&self, batch: usize) -> f64 {
        #[allow(clippy::cast_precision_loss)] // a few sessions
        let touched = 1.0 - (1.0 - self.experts_used).powf(batch as f64);
        self.dense_bytes + self.expert_bytes * touched
    }
}

/// Measured peaks of the machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Roofline {
    /// Bytes per second read from memory.
    pub read_bytes_per_second: f64,
    /// Bytes per second copied.
    pub copy_bytes_per_second: f64,
    /// 8-bit operations per second of vectors.
    pub int8_operations_per_second: f64,
    /// The instruction that gave them.
    pub int8_with: String,
    /// The same of tiles (AMX), where there are any.
    pub int8_operations_per_second_of_tiles: Option<f64>,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// `prefill`, `fill` or `decode`.
    pub test: String,
    /// Tokens before it.
    pub depth: usize,
    /// Seconds per token of one session, inverted and times the sessions.
    pub tokens_per_second: f64,
    /// Pieces of a prefill.
    pub chunks: Vec<Chunk>,
}

/// A timed piece of a prefill.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Chunk {
    /// Tokens before it.
    pub depth: usize,
    /// Tokens in it.
    pub tokens: usize,
    /// What it took.
    pub seconds: f64,
}

impl Ds4 {
    /// Builds it.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn build() -> Result<Self> {
        let program = released::program("ds4", &["--bin", "ds4"], "ds4")?;
        Ok(Self { program })
    }

    /// The medium random model (1.04 GiB, 12 layers), written unless it is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn medium(&self) -> Result<PathBuf> {
        let file = repository::cache().join("bench/models/medium.gguf");
        if file.exists() {
            return Ok(file);
        }
        std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
        let unfinished = file.with_extension("unfinished");
        step("writing the medium model (1.04 GiB)", || {
            process::output(
                Command::new(&self.program)
                    .args(["synth", "--preset", "medium", "--out"])
                    .arg(&unfinished),
            )
        })?;
        std::fs::rename(&unfinished, &file)?;
        Ok(file)
    }

    /// The machine's peaks, and the model's shapes.
    ///
    /// # Errors
    /// When it fails.
    pub fn machine(&self, setting: &Setting<'_>) -> Result<(Measured, Roofline)> {
        let (measured, _) = self.bench(
            setting,
            &["--prompt", "0", "--generate", "0", "--no-warmup", "--roofline"],
        )?;
        let roofline = measured
            .roofline
            .clone()
            .context("ds4 bench --roofline measured no machine")?;
        Ok((measured, roofline))
    }

    /// A prompt of `tokens` tokens from nothing.
    ///
    /// # Errors
    /// When it fails.
    pub fn prefill(&self, setting: &Setting<'_>, tokens: usize) -> Result<(Measured, Finished)> {
        self.bench(setting, &["--prompt", &tokens.to_string(), "--generate", "0"])
    }

    /// `tokens` tokens in each of `batch` sessions, at each of some depths.
    ///
    /// # Errors
    /// When it fails.
    pub fn decode(
        &self,
        setting: &Setting<'_>,
        depths: &[usize],
        batch: usize,
        tokens: usize,
    ) -> Result<(Measured, Finished)> {
        let depths: Vec<_> = depths.iter().map(ToString::to_string).collect();
        let (depths, batch, tokens) = (depths.join(","), batch.to_string(), tokens.to_string());
        self.bench(
            setting,
            &[
                "--prompt",
                "0",
                "--depth",
                &depths,
                "--batch",
                &batch,
                "--generate",
                &tokens,
            ],
        )
    }

    /// What `ds4 inspect --json` says of a file.
    ///
    /// # Errors
    /// When it fails.
    pub fn inspect(&self, model: &Path) -> Result<serde_json::Value> {
        let text = process::output(
            Command::new(&self.program)
                .arg("inspect")
                .arg(model)
                .arg("--json"),
        )?;
        serde_json::from_str(&text).with_context(|| format!("what ds4 inspect printed:\n{text}"))
    }

    fn bench(&self, setting: &Setting<'_>, arguments: &[&str]) -> Result<(Measured, Finished)> {
        let mut command = Command::new(&self.program);
        command.arg("bench").arg("--model").arg(setting.model);
        command.args([
            "--threads",
            &setting.threads.to_string(),
            "--chunk",
            &setting.chunk.to_string(),
            "--json",
        ]);
        let run = child::run(command.args(arguments))?;
        let measured = serde_json::from_str(&run.stdout)
            .with_context(|| format!("the results of ds4 bench:\n{}", run.stdout))?;
        Ok((measured, run))
    }
}

impl Measured {
    /// Tokens per second of its only row of a kind.
    ///
    /// # Errors
    /// When there is no such row, or more than one.
    pub fn rate(&self, test: &str) -> Result<f64> {
        let mut rows = self.results.iter().filter(|row| row.test == test);
        let row = rows
            .next()
            .with_context(|| format!("ds4 bench printed no {test}"))?;
        ensure!(rows.next().is_none(), "ds4 bench printed more than one {test}");
        Ok(row.tokens_per_second)
    }
}
