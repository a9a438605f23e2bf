//! The project's own commands: `cargo xtask test` is what CI runs.

mod crds;
mod steps;

use std::process::ExitCode;

use clap::Parser;

/// Commands of the DS4 repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Xtask {
    /// Runs everything that CI runs, in order, and says how long each step took.
    Test {
        /// Leaves out the steps with these names.
        #[arg(long, value_name = "STEP")]
        skip: Vec<String>,
        /// Prints the steps and ends.
        #[arg(long)]
        list: bool,
    },
    /// Writes the CustomResourceDefinition and the chart's copy from the types.
    Crds {
        /// Writes nothing; fails when the files are not what the types give.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let outcome = match Xtask::parse() {
        Xtask::Test { list: true, .. } => steps::print(),
        Xtask::Test { skip, list: false } => steps::run(&skip),
        Xtask::Crds { check } => crds::run(check),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
