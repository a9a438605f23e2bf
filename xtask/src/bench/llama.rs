//! llama.cpp, the peer: built from the source package of its Python binding, at one version, with its fastest settings.
//!
//! It is a program beside ours; nothing of it is linked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::child::{self, Finished};
use crate::process::{self, found};
use crate::progress::step;
use crate::{python, repository};

/// The first release whose llama.cpp knows the architecture `deepseek4` and that this was checked with.
const VERSION: &str = "0.3.36";
/// Of the source package on PyPI.
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// For this processor (all of its instructions), without what a benchmark has no use for.
const OPTIONS: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
];
/// Prompts beyond this are timed cold: their first 512 tokens warm up the rest.
const WARM: usize = 2048;

/// The prompt that its settings are tried with.
const TRIAL: usize = 128;

/// Its benchmark programs.
pub struct Llama {
    programs: PathBuf,
    weights: Weights,
}

/// How it lays weights out in memory of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weights {
    /// For the processor's instructions.
    Repacked,
    /// As the file has them.
    AsStored,
}

/// How it is run.
pub struct Setting<'a> {
    /// Model file.
    pub model: &'a Path,
    /// Threads, each on a processor of its own.
    pub threads: usize,
    /// The processors as a mask.
    pub mask: String,
}

/// One timed run.
pub struct Timed {
    /// Tokens per second.
    pub rate: f64,
    /// Seconds that were timed.
    pub seconds: f64,
    /// The process.
    pub run: Finished,
}

impl Llama {
    /// Its name and version, for a report.
    pub const NAME: &str = "llama.cpp (llama-cpp-python 0.3.36)";

    /// Builds it unless it is there.
    ///
    /// # Errors
    /// When a compiler is missing, the package is not what was pinned, or the build fails.
    pub fn build() -> Result<Self> {
        let folder = repository::cache().join(format!("bench/llama.cpp-{VERSION}"));
        let programs = folder.join("build/bin");
        if !programs.join("llama-bench").exists() || !programs.join("llama-batched-bench").exists() {
            for (program, package) in [("cmake", "cmake"), ("c++", "build-essential")] {
                ensure!(
                    found(program),
                    "{program} is missing: on Debian, as root: apt-get install {package}"
                );
            }
            let source = folder.join("source");
            if !source.exists() {
                step("fetching the source of llama.cpp", || fetch(&folder, &source))?;
            }
            step(
                "building llama.cpp (cold: about 5 minutes on two idle cores)",
                || compile(&folder),
            )?;
        }
        Ok(Self {
            programs,
            weights: Weights::Repacked,
        })
    }

    /// Takes the setting that is the fastest of those that work, and says what was found.
    ///
    /// Repacked weights are faster by a third on some processors; where they are laid out for AMX this version aborts
    /// at the grouped output projection.
    ///
    /// # Errors
    /// When no setting works: with what the last one said.
    pub fn tune(&mut self, setting: &Setting<'_>) -> Result<String> {
        let mut trials = Vec::new();
        for weights in [Weights::Repacked, Weights::AsStored] {
            self.weights = weights;
            trials.push((weights, self.prefill(setting, TRIAL).map(|timed| timed.rate)));
        }
        let found: Vec<_> = trials.iter().map(|(weights, rate)| weights.found(rate)).collect();
        self.weights = fastest(trials)?;
        Ok(format!("weights {} ({})", self.weights.name(), found.join(", ")))
    }

    /// A prompt of `tokens` tokens from nothing.
    ///
    /// # Errors
    /// When it fails or prints something else than its results.
    pub fn prefill(&self, setting: &Setting<'_>, tokens: usize) -> Result<Timed> {
        let mut command = self.command(setting);
        command.args(["-p", &tokens.to_string(), "-n", "0"]);
        if tokens > WARM {
            command.arg("--no-warmup");
        }
        timed(&mut command)
    }

    /// `tokens` tokens one after another behind `depth` others.
    ///
    /// # Errors
    /// When it fails or prints something else than its results.
    pub fn decode(&self, setting: &Setting<'_>, depth: usize, tokens: usize) -> Result<Timed> {
        let mut command = self.command(setting);
        command.args(["-p", "0", "-n", &tokens.to_string(), "-d", &depth.to_string()]);
        timed(&mut command)
    }

    /// One token and nothing before it: what is left of the process's time is loading.
    ///
    /// # Errors
    /// When it fails or prints something else than its results.
    pub fn load(&self, setting: &Setting<'_>) -> Result<Timed> {
        let mut command = self.command(setting);
        command.args(["-p", "0", "-n", "1", "--no-warmup"]);
        timed(&mut command)
    }

    /// `batch` sessions of `depth` tokens that generate `tokens` tokens each, at once.
    ///
    /// # Errors
    /// When it fails or prints something else than its results.
    pub fn batch(&self, setting: &Setting<'_>, depth: usize, batch: usize, tokens: usize) -> Result<Timed> {
        let context = batch * (depth + tokens);
        let mut command = Command::new(self.programs.join("llama-batched-bench"));
        command.arg("-m").arg(setting.model).args([
            "-t",
            &setting.threads.to_string(),
            "-C",
            &setting.mask,
            "--cpu-strict",
            "1",
            "-lm",
            "none",
            "-c",
            &context.to_string(),
            "-npp",
            &depth.to_string(),
            "-ntg",
            &tokens.to_string(),
            "-npl",
            &batch.to_string(),
            "--output-format",
            "jsonl",
        ]);
        if self.weights == Weights::AsStored {
            command.arg("--no-repack");
        }
        let run = child::run(&mut command)?;
        let line = run.stdout.lines().find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("llama-batched-bench printed no result:\n{}", run.stdout))?;
        let result: Value = serde_json::from_str(line)?;
        let (rate, seconds) = (number(&result["speed_tg"])?, number(&result["t_tg"])?);
        Ok(Timed { rate, seconds, run })
    }

    /// Without mapped weights: read into memory of its own, they can be repacked.
    fn command(&self, setting: &Setting<'_>) -> Command {
        let mut command = Command::new(self.programs.join("llama-bench"));
        command.arg("-m").arg(setting.model).args([
            "-t",
            &setting.threads.to_string(),
            "-C",
            &setting.mask,
            "--cpu-strict",
            "1",
            "-lm",
            "none",
            "-r",
            "1",
            "-o",
            "json",
            "--repack",
            if self.weights == Weights::Repacked {
                "1"
            } else {
                "0"
            },
        ]);
        command
    }
}

impl Weights {
    fn name(self) -> &'static str {
        match self {
            Self::Repacked => "repacked",
            Self::AsStored => "as stored",
        }
    }

    fn found(self, rate: &Result<f64>) -> String {
        let found = rate.as_ref().map_or_else(
            |error| reason(&error.to_string()),
            |rate| format!("{rate:.1} t/s"),
        );
        format!("{}: {found}", self.name())
    }
}

/// Of what a program said when it failed: the assertion, or else the last line.
fn reason(said: &str) -> String {
    let line = said.lines().find(|line| line.contains("ASSERT"));
    let line = line.or_else(|| said.lines().last()).unwrap_or("nothing said");
    format!("fails, {}", line.rsplit_once(": ").map_or(line, |(_, end)| end))
}

fn fastest(trials: Vec<(Weights, Result<f64>)>) -> Result<Weights> {
    let (mut best, mut last) = (None, None);
    for (weights, rate) in trials {
        match rate {
            Ok(rate) if best.is_none_or(|(_, other)| rate > other) => best = Some((weights, rate)),
            Ok(_) => (),
            Err(error) => last = Some(error),
        }
    }
    match (best, last) {
        (Some((weights, _)), _) => Ok(weights),
        (None, Some(error)) => Err(error.context("no setting of llama.cpp works with this model")),
        (None, None) => bail!("no setting of llama.cpp was tried"),
    }
}

fn timed(command: &mut Command) -> Result<Timed> {
    let run = child::run(command)?;
    let results: Value = serde_json::from_str(&run.stdout)
        .with_context(|| format!("the results of llama-bench:\n{}", run.stdout))?;
    let result = &results[0];
    let (rate, seconds) = (number(&result["avg_ts"])?, number(&result["avg_ns"])? / 1e9);
    Ok(Timed { rate, seconds, run })
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .filter(|number| number.is_finite() && *number > 0.0)
        .with_context(|| format!("expected a number above 0 in the peer's results, found {value}"))
}

fn fetch(folder: &Path, source: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let (package, log) = (format!("llama-cpp-python=={VERSION}"), folder.join("fetch.log"));
    process::logged(
        Command::new(python::environment("pip", &[])?)
            .args([
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-binary",
                "llama-cpp-python",
                &package,
                "-d",
            ])
            .arg(folder),
        &log,
    )?;
    let archive = folder.join(format!("llama_cpp_python-{VERSION}.tar.gz"));
    let found = format!("{:x}", Sha256::digest(std::fs::read(&archive)?));
    if found != SHA256 {
        bail!("{}: expected SHA-256 {SHA256}, found {found}", archive.display());
    }
    process::logged(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(folder),
        &log,
    )?;
    let unpacked = folder.join(format!("llama_cpp_python-{VERSION}"));
    std::fs::rename(unpacked.join("vendor/llama.cpp"), source)
        .context("the source package has no vendor/llama.cpp")?;
    std::fs::remove_dir_all(unpacked)?;
    Ok(std::fs::remove_file(archive)?)
}

fn compile(folder: &Path) -> Result<()> {
    let mut configure = Command::new("cmake");
    configure
        .args(["-S", "source", "-B", "build"])
        .args(OPTIONS)
        .current_dir(folder);
    if found("ninja") {
        configure.args(["-G", "Ninja"]);
    }
    process::logged(&mut configure, &folder.join("configure.log"))?;
    let targets = [
        "--build",
        "build",
        "--parallel",
        "--target",
        "llama-bench",
        "llama-batched-bench",
    ];
    process::logged(
        Command::new("cmake").args(targets).current_dir(folder),
        &folder.join("build.log"),
    )
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_fastest_setting_that_works_is_taken() -> Result<()> {
        use Weights::{AsStored, Repacked};
        assert_eq!(fastest(vec![(Repacked, Ok(2.0)), (AsStored, Ok(1.0))])?, Repacked);
        assert_eq!(fastest(vec![(Repacked, Ok(1.0)), (AsStored, Ok(2.0))])?, AsStored);
        assert_eq!(
            fastest(vec![(Repacked, Err(anyhow!("aborts"))), (AsStored, Ok(1.0))])?,
            AsStored
        );
        let none = fastest(vec![(Repacked, Err(anyhow!("aborts")))]);
        assert!(none.is_err_and(|error| format!("{error:#}").contains("aborts")));
        Ok(())
    }

    #[test]
    fn why_a_setting_fails_is_its_assertion() {
        let said = "llama-bench ended with signal: 6:\n/a/b.cpp:12: GGML_ASSERT(x != -1) failed\nframe";
        assert_eq!(reason(said), "fails, GGML_ASSERT(x != -1) failed");
        assert_eq!(reason("out of memory"), "fails, out of memory");
    }
}
