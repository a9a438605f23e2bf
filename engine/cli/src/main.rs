//! `ds4`: the engine as a program. One file per command under `commands`.
#![allow(clippy::print_stdout)] // a program's results belong on standard output

mod args;
mod client;
mod commands;
mod load;
mod local_stages;
mod sizes;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Bench, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes; a cause that was told already is not told again.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Synth(arguments) => commands::synth::run(&arguments),
        Command::Fetch(arguments) => wait_for(commands::fetch::run(arguments)),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Bench(Bench::Engine(arguments)) => commands::bench::run(&arguments),
        Command::Completion { shell } => {
            commands::completion(shell);
            Ok(())
        }
        Command::Logits(arguments) => wait_for(commands::logits::run(arguments)),
        Command::Run(arguments) => wait_for(commands::run::run(arguments)),
        Command::Chat(arguments) => wait_for(commands::chat::run(arguments)),
        Command::Bench(Bench::Policy(arguments)) => commands::bench_policy::run(&arguments),
        Command::Bench(Bench::Serve(arguments)) => wait_for(commands::bench_serve::run(arguments)),
        Command::Stage(arguments) => wait_for(commands::stage::run(arguments)),
        Command::Serve(arguments) => wait_for(commands::serve::run(arguments)),
        Command::Health(arguments) => wait_for(commands::health::run(arguments)),
    }
}

fn wait_for(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
