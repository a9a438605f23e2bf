//! `cargo xtask bench pipeline`: prefill by two and three stages, one core each, beside one process on one core.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Deserialize;

use super::pods::{Pods, model, setting, write};
use super::report::{Check, Report};

/// Tokens, and how much faster two and three stages should be than one process. The first is upstream's shorter prompt.
const GOALS: [(usize, f64, f64); 2] = [(9421, 1.8, 2.7), (32_768, 1.95, 2.7)];

/// Options.
#[derive(Args)]
pub struct Pipeline {
    /// Rounds, of which the least time counts.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Tokens in a chunk.
    #[arg(long, default_value_t = 128, value_name = "N")]
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
    stretch: f64,
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
                ("rounds", self.rounds.max(1).to_string()),
            ];
            let run = pods.measure::<Run>("pipeline", &arguments)?;
            report.checks.extend(checks(&run, *tokens, *two, *three));
        }
        report.notes = vec![
            "Scheduled: the time that each stage's thread ran for each chunk, put through the schedule of the pipeline, with what the pods' other \
             threads ran added to every stage and chunk. For two stages the times are those of the two processes as they ran; for three, each \
             stage's by itself, made as much longer as the two are in their processes. So other programs on the machine do not count, and a third \
             core can be had on a machine of two. On the wall: two processes as they ran, which other programs slow."
                .into(),
            "Of several rounds the least time counts, chunk by chunk for what is scheduled: neighbours of a virtual machine slow it for seconds."
                .into(),
        ];
        write("pipeline", &report, self.json.as_deref())
    }
}

fn checks(run: &Run, tokens: usize, two: f64, three: f64) -> Vec<Check> {
    let check = |name: &str, found, limit, at_least| Check {
        name: format!("{tokens} tokens: {name}"),
        found,
        limit,
        at_least,
    };
    vec![
        check(
            "two stages, scheduled, times one process",
            run.one / run.two,
            two,
            true,
        ),
        check(
            "three stages, scheduled, times one process",
            run.one / run.three,
            three,
            true,
        ),
        check(
            "two stages, on the wall, times one process",
            run.one_wall / run.two_wall,
            two,
            true,
        ),
        check(
            "bubble of two, %",
            100.0 * run.two_bubble,
            100.0 * (1.0 - two / 2.0),
            false,
        ),
        check(
            "bubble of three, %",
            100.0 * run.three_bubble,
            100.0 * (1.0 - three / 3.0),
            false,
        ),
        check(
            "a hop's processor time, ms a chunk and side",
            1e3 * run.hop,
            10.0,
            false,
        ),
        check("computing in the pods, times by itself", run.stretch, 1.05, false),
    ]
}
