//! `cargo xtask bench pipeline`: prefill by two and three stages, one core each, beside one process on one core.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Deserialize;

use super::pods::{Pods, model, setting, write};
use super::report::{Check, Report, Samples};

/// Tokens, and how much faster two and three stages should be than one process. The first is upstream's shorter prompt.
const GOALS: [(usize, f64, f64); 2] = [(9421, 1.8, 2.7), (32_768, 1.95, 2.7)];

/// Options.
#[derive(Args)]
pub struct Pipeline {
    /// Rounds of every figure.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Tokens in a chunk.
    #[arg(long, default_value_t = 256, value_name = "N")]
    chunk: usize,
    /// The shorter prompt only.
    #[arg(long)]
    quick: bool,
    /// Where the report goes too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Run {
    one: f64,
    one_wall: f64,
    two_wall: f64,
    hop: f64,
    two: f64,
    two_bubble: f64,
    three: f64,
    three_bubble: f64,
}

impl Pipeline {
    /// Measures, prints the report and writes it.
    ///
    /// # Errors
    /// When something cannot be built or run.
    pub fn run(self) -> Result<()> {
        let mut report = Report {
            title: "Prefill as a pipeline".into(),
            setting: setting(),
            ..Report::default()
        };
        let pods = Pods::build()?;
        let goals = if self.quick { &GOALS[..1] } else { &GOALS[..] };
        for (tokens, two, three) in goals {
            let arguments = [
                ("model", model("even.gguf")?),
                ("tokens", tokens.to_string()),
                ("chunk", self.chunk.to_string()),
            ];
            let runs = (0..self.rounds.max(1)).map(|_| pods.measure::<Run>("pipeline", &arguments));
            let runs = runs.collect::<Result<Vec<_>>>()?;
            report.checks.extend(checks(&runs, *tokens, *two, *three));
        }
        report.notes = vec![
            "Scheduled: the time that each stage's thread took for each chunk by itself, and what the hop between two processes cost a core, put \
             through the schedule of the pipeline. So other programs on the machine do not count, and a third core can be had on a machine of two. \
             On the wall: two processes as they ran, which other programs slow."
                .into(),
        ];
        write("pipeline", &report, self.json.as_deref())
    }
}

fn checks(runs: &[Run], tokens: usize, two: f64, three: f64) -> Vec<Check> {
    let median = |of: fn(&Run) -> f64| {
        Samples(runs.iter().map(of).collect())
            .median()
            .unwrap_or(f64::NAN)
    };
    let check = |name: &str, found, limit, at_least| Check {
        name: format!("{tokens} tokens: {name}"),
        found,
        limit,
        at_least,
    };
    vec![
        check(
            "two stages, scheduled, times one process",
            median(|run| run.one / run.two),
            two,
            true,
        ),
        check(
            "two stages, on the wall, times one process",
            median(|run| run.one_wall / run.two_wall),
            two,
            true,
        ),
        check(
            "three stages, scheduled, times one process",
            median(|run| run.one / run.three),
            three,
            true,
        ),
        check(
            "bubble of two, %",
            median(|run| 100.0 * run.two_bubble),
            100.0 * (1.0 - two / 2.0),
            false,
        ),
        check(
            "bubble of three, %",
            median(|run| 100.0 * run.three_bubble),
            100.0 * (1.0 - three / 3.0),
            false,
        ),
        check(
            "a hop's processor time, ms a chunk",
            median(|run| 1e3 * run.hop),
            10.0,
            false,
        ),
    ]
}
