//! The project's own commands: `cargo xtask test` is what CI runs.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
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
}

/// One step of `cargo xtask test`: its name and the cargo arguments.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Extra `RUSTDOCFLAGS`, so that a broken link in the documentation is an error.
    rustdoc_flags: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        arguments: &["fmt", "--all", "--check"],
        rustdoc_flags: "",
    },
    Step {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        rustdoc_flags: "",
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps"],
        rustdoc_flags: "-D warnings",
    },
    Step {
        name: "test",
        arguments: &["test", "--workspace", "--no-fail-fast"],
        rustdoc_flags: "",
    },
];

fn main() -> ExitCode {
    let Xtask::Test { skip, list } = Xtask::parse();
    let outcome = if list { print_steps() } else { run(&skip) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_steps() -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for step in STEPS {
        writeln!(out, "{:8} cargo {}", step.name, step.arguments.join(" "))?;
    }
    Ok(())
}

fn run(skip: &[String]) -> Result<()> {
    if let Some(unknown) = skip
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != name.as_str()))
    {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!(
            "--skip {unknown}: no such step; the steps are {}",
            names.join(", ")
        );
    }
    for step in STEPS
        .iter()
        .filter(|step| !skip.iter().any(|name| name == step.name))
    {
        let start = Instant::now();
        eprintln!("== {} ==", step.name);
        let status = Command::new(env!("CARGO"))
            .args(step.arguments)
            .env("RUSTDOCFLAGS", step.rustdoc_flags)
            .status()
            .with_context(|| format!("starting cargo for the step {}", step.name))?;
        if !status.success() {
            bail!("the step {} ended with {status}", step.name);
        }
        eprintln!("== {}: {:.0} s ==", step.name, start.elapsed().as_secs_f64());
    }
    Ok(())
}
