//! Decode after a handoff equals decode without one, through real stage processes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ds4_tests::{run_ds4, synth, tokens, write_tokens};
use serde_json::Value;

/// Around every edge of the model's own periods: ratio 4, ratio 128, window 32, chunk 64 and 512.
const PROMPTS: [usize; 9] = [1, 3, 4, 5, 127, 128, 129, 1000, 3000];
const CHUNKS: [usize; 2] = [64, 512];
const DECODED: usize = 64;
/// The micro preset has 3 layers and 280 tokens.
const TWO_STAGES: &str = "0:1,2:output";
const THREE_STAGES: &str = "0:0,1:1,2:output";

struct Bench {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = synth(folder.path(), "micro", 7, &[])?;
        Ok(Self { folder, model })
    }

    fn prompt(&self, length: usize) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("prompt-{length}.json"));
        write_tokens(&path, &tokens(length, 280, 1234))?;
        Ok(path)
    }

    /// Greedy tokens of one prompt, and the summary that the run printed.
    fn decode(&self, prompt: &Path, chunk: usize, stages: Option<&str>) -> Result<(Vec<u8>, Value)> {
        let out = self.folder.path().join("tokens.json");
        let mut arguments: Vec<String> = ["run", "--json", "--ignore-eos", "--temp", "0"]
            .map(String::from)
            .into();
        arguments.extend([
            "--max-tokens".into(),
            DECODED.to_string(),
            "--prefill-chunk".into(),
            chunk.to_string(),
        ]);
        for (flag, path) in [
            ("--model", self.model.as_path()),
            ("--prompt-tokens", prompt),
            ("--tokens-out", &out),
        ] {
            arguments.extend([flag.to_owned(), path.display().to_string()]);
        }
        if let Some(stages) = stages {
            arguments
                .extend(["--stages", stages, "--policy", "always", "--on-failure", "fail"].map(String::from));
        }
        let output = run_ds4(arguments)?;
        let summary =
            serde_json::from_slice(&output.stdout).context("ds4 run --json prints one JSON object")?;
        Ok((std::fs::read(&out)?, summary))
    }
}

#[test]
fn greedy_tokens_after_a_handoff_equal_those_without_one() -> Result<()> {
    let bench = Bench::new()?;
    for length in PROMPTS {
        let prompt = bench.prompt(length)?;
        let (expected, summary) = bench.decode(&prompt, 512, None)?;
        let decoded: Vec<u32> = serde_json::from_slice(&expected)?;
        ensure!(
            decoded.len() == DECODED,
            "{length}: decoded {} tokens, expected {DECODED}",
            decoded.len()
        );
        ensure!(
            decision(&summary).starts_with("local"),
            "{length}: without stages the decision was {summary}"
        );
        for stages in [TWO_STAGES, THREE_STAGES] {
            for chunk in CHUNKS {
                let (found, summary) = bench.decode(&prompt, chunk, Some(stages))?;
                ensure!(
                    decision(&summary) == "disaggregated",
                    "{length} tokens over {stages}: {summary}"
                );
                ensure!(
                    found == expected,
                    "{length} tokens over {stages} at chunk {chunk}: other tokens"
                );
            }
        }
    }
    Ok(())
}

fn decision(summary: &Value) -> &str {
    summary["decision"].as_str().unwrap_or("none")
}
