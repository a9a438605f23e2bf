//! The project's own commands: `cargo xtask test` is what CI runs.
#![allow(clippy::print_stdout)] // commands print their results

mod cluster;
mod crds;
mod demo;
mod images;
mod journey;
mod process;
mod processes;
mod progress;
mod repository;
mod steps;
mod tools;
mod trace;

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
    /// Shows the main job on a real cluster of this machine: install, apply, ask, and the trace of the answer.
    Demo {
        /// Where the stages run: pods of a cluster in network namespaces (Linux, root), or processes.
        #[arg(long, value_enum, default_value = "auto")]
        provider: Provider,
        /// Leaves the cluster running.
        #[arg(long)]
        keep: bool,
    },
    /// A real three-node Kubernetes in network namespaces of this machine (Linux, root).
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Builds all images as archives, without a container builder.
    Images,
    /// Takes a user's way through a fresh cluster and checks every stop.
    Journey,
    /// Writes the CustomResourceDefinition and the chart's copy from the types.
    Crds {
        /// Writes nothing; fails when the files are not what the types give.
        #[arg(long)]
        check: bool,
    },
}

/// Where the demo's stages run.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Provider {
    /// A cluster where this machine can run one; otherwise the remedy is printed.
    Auto,
    /// A cluster in network namespaces.
    Namespaces,
    /// Processes.
    Processes,
}

/// What to do with the cluster.
#[derive(clap::Subcommand)]
enum ClusterCommand {
    /// Builds what it needs and starts it, with the project's images on every node.
    Up,
    /// Ends it.
    Down,
    /// Shows nodes and pods.
    Status,
    /// Runs kubectl in it.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn run_cluster(command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Up => cluster::up().map(|_| ()),
        ClusterCommand::Down => cluster::down(),
        ClusterCommand::Status => {
            println!("{}", cluster::running()?.status()?);
            Ok(())
        }
        ClusterCommand::Kubectl { arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            print!("{}", cluster::running()?.kubectl(&arguments)?);
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Xtask::parse() {
        Xtask::Demo {
            provider: Provider::Processes,
            ..
        } => processes::run(),
        Xtask::Demo { keep, .. } => demo::run(keep),
        Xtask::Cluster(command) => run_cluster(command),
        Xtask::Images => demo::images(),
        Xtask::Journey => journey::run(),
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
