//! `cargo xtask oracle`: our logits against transformers' own `deepseek_v4` model, on small random models, in both numerics.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::ask::print;
use crate::process;
use crate::progress::step;
use crate::{python, repository};

/// The first version of transformers with the architecture that this was checked with, and a torch that it takes.
const PACKAGES: &[&str] = &["torch==2.15.0", "transformers==5.23.0", "gguf==0.19.0"];
/// Tokens of a comparison: enough for two rows of ratio 128.
const TOKENS: usize = 300;
/// Golden files keep every so many positions.
const GOLDEN_STEP: usize = 10;

/// How much further from the emulation ours may be than the emulation is from itself with other last bits. Near ties between experts or rows
/// fall either way, and whole positions differ then, however right both are; this leaves room for chance and none for an error.
const SLACK: f64 = 1.5;

/// A random model.
struct Model {
    name: &'static str,
    preset: &'static str,
    settings: &'static [&'static str],
}

const MODELS: &[Model] = &[
    Model {
        name: "micro",
        preset: "micro",
        settings: &[],
    },
    Model {
        name: "tiny",
        preset: "tiny",
        settings: &[],
    },
    // All layers route by token id and the indexer selects every row: no choice is left that a rounding could turn.
    Model {
        name: "smooth",
        preset: "tiny",
        settings: &["n_hash=7", "ix_topk=512"],
    },
];

/// What `compare.py` prints.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Found {
    positions: usize,
    relative_l2_first: f64,
    relative_l2_most: f64,
    top1_equal: usize,
    top1_wrong_where_clear: usize,
    mean_kl: f64,
    distinct_top1: usize,
}

/// Compares on all models and prints a table; `golden` also renews the files under `tests/oracle/golden`.
///
/// # Errors
/// When a tool is missing or a limit is not met: then with every number that does not meet its limit.
pub fn run(golden: bool) -> Result<()> {
    let python = python::environment("oracle", PACKAGES)?;
    let ds4 = build()?;
    let folder = repository::cache().join("oracle");
    std::fs::create_dir_all(&folder)?;
    print(
        "| model | numerics | relative L2 at 0 | at most | top-1 equal | mean KL |\n|---|---|--:|--:|--:|--:|",
    )?;
    let mut missed = Vec::new();
    for model in MODELS {
        let place = Place::make(&ds4, model, &folder)?;
        let reference = place.compare(&ds4, &python, "reference")?;
        let canonical = place.compare(&ds4, &python, "canonical")?;
        let itself = place.compare_emulation_with_itself(&python)?;
        print(&reference.row(model.name, "reference"))?;
        print(&canonical.row(model.name, "canonical"))?;
        print(&itself.row(
            model.name,
            "canonical, the emulation against itself with other last bits",
        ))?;
        let wrong = reference
            .missed_reference()
            .into_iter()
            .chain(canonical.missed_canonical(&itself));
        missed.extend(wrong.map(|what| format!("{}: {what}", model.name)));
        if golden && model.name == "micro" {
            place.keep("reference")?;
            place.keep("canonical")?;
        }
    }
    if !missed.is_empty() {
        bail!("not within the limits:\n{}", missed.join("\n"));
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    let log = repository::cache().join("oracle/build.log");
    step("building ds4", || {
        process::logged(
            Command::new(env!("CARGO"))
                .args(["build", "--bin", "ds4"])
                .current_dir(repository::root()),
            &log,
        )
    })?;
    Ok(repository::target().join("debug/ds4"))
}

/// A model's files.
struct Place {
    folder: PathBuf,
    name: &'static str,
    vocabulary: usize,
}

impl Place {
    fn make(ds4: &Path, model: &Model, folder: &Path) -> Result<Self> {
        let mut place = Self {
            folder: folder.to_owned(),
            name: model.name,
            vocabulary: 0,
        };
        let file = place.file("gguf");
        let mut command = Command::new(ds4);
        command
            .args(["synth", "--preset", model.preset, "--out"])
            .arg(&file);
        model.settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        process::output(&mut command)?;
        let inspected: serde_json::Value = serde_json::from_str(&process::output(
            Command::new(ds4).args(["inspect", "--json"]).arg(&file),
        )?)?;
        let vocabulary = inspected["n_vocab"]
            .as_u64()
            .context("ds4 inspect named no n_vocab")?;
        place.vocabulary = usize::try_from(vocabulary)?;
        std::fs::write(
            place.file("tokens.json"),
            format!("{:?}", tokens(TOKENS, place.vocabulary)),
        )?;
        Ok(place)
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.name))
    }

    fn theirs(&self, numerics: &str) -> PathBuf {
        self.file(&format!("{numerics}.theirs.f32"))
    }

    fn compare(&self, ds4: &Path, python: &Path, numerics: &str) -> Result<Found> {
        let (theirs, ours) = (self.theirs(numerics), self.file(&format!("{numerics}.ours.f32")));
        let (model, tokens) = (self.file("gguf"), self.file("tokens.json"));
        step(&format!("{} in {numerics} numerics", self.name), || {
            self.reference(python, &theirs, &["--numerics", numerics])?;
            let mut command = Command::new(ds4);
            command
                .args(["logits", "--numerics", numerics, "--model"])
                .arg(&model);
            process::output(command.arg("--tokens").arg(&tokens).arg("--out").arg(&ours))
        })?;
        self.found(python, &theirs, &ours)
    }

    fn compare_emulation_with_itself(&self, python: &Path) -> Result<Found> {
        let nudged = self.theirs("nudged");
        step(
            &format!("{}: the emulation with other last bits", self.name),
            || self.reference(python, &nudged, &["--numerics", "canonical", "--nudge"]),
        )?;
        self.found(python, &self.theirs("canonical"), &nudged)
    }

    fn reference(&self, python: &Path, out: &Path, arguments: &[&str]) -> Result<()> {
        let script = scripts().join("reference.py");
        let files = [
            script,
            self.file("gguf"),
            self.file("tokens.json"),
            out.to_owned(),
        ];
        process::output(Command::new(python).args(files).args(arguments)).map(drop)
    }

    fn found(&self, python: &Path, theirs: &Path, ours: &Path) -> Result<Found> {
        let mut command = Command::new(python);
        command.arg(scripts().join("compare.py")).args([theirs, ours]);
        let said = process::output(command.arg(self.vocabulary.to_string()))?;
        serde_json::from_str(&said).with_context(|| format!("what compare.py printed: {said}"))
    }

    /// Every so many positions of their logits, small enough to be committed.
    fn keep(&self, numerics: &str) -> Result<()> {
        let all = std::fs::read(self.theirs(numerics))?;
        ensure!(
            all.len() == 4 * TOKENS * self.vocabulary,
            "expected {TOKENS} positions, found {} bytes",
            all.len()
        );
        let kept: Vec<u8> = all
            .chunks_exact(4 * self.vocabulary)
            .step_by(GOLDEN_STEP)
            .flatten()
            .copied()
            .collect();
        let folder = repository::root().join("tests/oracle/golden");
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(
            folder.join(format!("{}.{numerics}.f32", self.name)),
            kept,
        )?)
    }
}

impl Found {
    fn row(&self, model: &str, numerics: &str) -> String {
        format!(
            "| {model} | {numerics} | {:.1e} | {:.1e} | {} of {} | {:.4} |",
            self.relative_l2_first, self.relative_l2_most, self.top1_equal, self.positions, self.mean_kl
        )
    }

    /// What of the reference numerics does not meet its limit, in words.
    fn missed_reference(&self) -> Vec<String> {
        let rules = [
            (
                self.distinct_top1 < 50,
                format!(
                    "{} distinct first tokens: too dull to tell anything",
                    self.distinct_top1
                ),
            ),
            (
                self.relative_l2_most > 1e-4,
                format!(
                    "relative L2: expected at most 1e-4, found {}",
                    self.relative_l2_most
                ),
            ),
            (
                self.top1_wrong_where_clear > 0,
                format!(
                    "{} other first tokens where theirs leads by 1e-3",
                    self.top1_wrong_where_clear
                ),
            ),
        ];
        missed(rules)
    }

    /// What of the served numerics is further from the emulation than chance makes it, in words.
    #[allow(clippy::cast_precision_loss)] // counts of positions
    fn missed_canonical(&self, itself: &Self) -> Vec<String> {
        let first = f64::max(5e-2, SLACK * itself.relative_l2_first);
        let (kl, others) = (SLACK * itself.mean_kl, |found: &Self| {
            (found.positions - found.top1_equal) as f64
        });
        let rules = [
            (
                self.relative_l2_first > first,
                format!(
                    "relative L2 at 0: expected at most {first}, found {}",
                    self.relative_l2_first
                ),
            ),
            (
                self.mean_kl > kl,
                format!("mean KL: expected at most {kl}, found {}", self.mean_kl),
            ),
            (
                others(self) > SLACK * others(itself) + 3.0,
                format!(
                    "{} other first tokens, the emulation itself {}",
                    others(self),
                    others(itself)
                ),
            ),
        ];
        missed(rules)
    }
}

fn missed<const N: usize>(rules: [(bool, String); N]) -> Vec<String> {
    rules
        .into_iter()
        .filter(|(missed, _)| *missed)
        .map(|(_, what)| what)
        .collect()
}

fn scripts() -> PathBuf {
    repository::root().join("tests/oracle")
}

/// Ids of a linear congruential generator (Numerical Recipes' constants), between the specials at both ends of the vocabulary.
fn tokens(count: usize, vocabulary: usize) -> Vec<usize> {
    let mut x = 1234_u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (x >> 8) as usize % (vocabulary - 11)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_that_is_not_met_is_named() {
        let found = Found {
            positions: 300,
            relative_l2_first: 0.1,
            relative_l2_most: 0.2,
            top1_equal: 200,
            top1_wrong_where_clear: 3,
            mean_kl: 0.5,
            distinct_top1: 100,
        };
        let itself = Found {
            relative_l2_first: 0.02,
            mean_kl: 0.2,
            top1_equal: 280,
            ..found
        };
        assert_eq!(found.missed_reference().len(), 2);
        assert_eq!(found.missed_canonical(&itself).len(), 3);
        assert_eq!(found.missed_canonical(&found), Vec::<String>::new());
        let fine = Found {
            relative_l2_most: 1e-6,
            top1_wrong_where_clear: 0,
            ..found
        };
        assert_eq!(fine.missed_reference(), Vec::<String>::new());
    }
}
