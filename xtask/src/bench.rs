//! `cargo xtask bench`: measurements side by side, one file each. A claim of speed or memory comes from one of these.

mod antirez;
mod checks;
mod child;
mod ds4;
mod engine;
mod growth;
mod handoff;
mod link;
mod llama;
mod machine;
mod pipeline;
mod plot;
mod pods;
mod report;
mod serving;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use machine::Cpus;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Prefill, decode, memory and load time of the engine, side by side with llama.cpp on the same file.
    #[command(
        after_help = "Examples:\n  cargo xtask bench engine --quick                     a few minutes, one round: is it about right?\n  cargo xtask bench engine --json engine.json          the whole comparison, three interleaved rounds\n  cargo xtask bench engine --only decode,batch         these parts again\n  cargo xtask bench engine --ds4 ../ds4                with antirez/ds4's CPU path, from a checkout of it\n  cargo xtask bench engine --threads 8 --pin 0-7 --model flash.gguf\n\nThe report (Markdown, JSON, SVG) lies in .cache/bench/engine afterwards."
    )]
    Engine(engine::Engine),
    /// Bytes, tail, throughput and memory of a handoff beside a raw TCP stream; decode after it beside a local session; how soon a stage stops.
    #[command(
        after_help = "The stage is a process of its own, with Flash's KV layout and narrow elsewhere. Throughput is measured on a link of 10 Gbit/s too\nwhere one can be made: on Linux, as root. The report (Markdown, JSON) lies in .cache/bench/handoff."
    )]
    Handoff(handoff::Handoff),
    /// Prefill by two and three stages of one core each, beside one process on one core.
    #[command(after_help = "The report (Markdown, JSON) lies in .cache/bench/pipeline.")]
    Pipeline(pipeline::Pipeline),
    /// What a long prompt costs those beside it: first tokens of short prompts, next tokens of running answers.
    #[command(
        after_help = "Needs `cargo build --bin ds4`. The output pod is kept on one processor, the stages and the clients on another, as pods are on nodes of\ntheir own; idle and beside the long prompt alike. The ratios are what counts: what is measured is a small model in the build of the tests."
    )]
    Serving(serving::Serving),
}

impl Bench {
    /// Measures, prints the report and writes it.
    ///
    /// # Errors
    /// When something cannot be built or run.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Engine(engine) => engine.run(),
            Self::Handoff(handoff) => handoff.run(),
            Self::Pipeline(pipeline) => pipeline.run(),
            Self::Serving(serving) => serving.run(),
        }
    }
}
