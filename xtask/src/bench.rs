//! `cargo xtask bench`: measurements side by side, one file each. A claim of speed or memory comes from one of these.

mod child;
mod ds4;
mod engine;
mod growth;
mod llama;
mod machine;
mod plot;
mod report;
mod serving;

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Prefill, decode, memory and load time of the engine, side by side with llama.cpp on the same file.
    #[command(
        after_help = "Examples:\n  cargo xtask bench engine --quick                     a few minutes, one round: is it about right?\n  cargo xtask bench engine --json engine.json          the whole comparison, three interleaved rounds\n  cargo xtask bench engine --threads 8 --pin 0-7 --model flash.gguf\n\nThe report (Markdown, JSON, SVG) lies in .cache/bench/engine afterwards."
    )]
    Engine(engine::Engine),
    /// What a long prompt costs those beside it: first tokens of short prompts, next tokens of running answers.
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
            Self::Serving(serving) => serving.run(),
        }
    }
}
