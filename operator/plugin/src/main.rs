//! `kubectl-ds4`: what people ask about a `DS4Deployment`. Put it on the PATH and call it as `kubectl ds4`.
//!
//! Each command reads objects once ([`cluster`]) and hands them to a pure function that makes text.
#![allow(clippy::print_stdout)] // a program's results belong on standard output

mod cluster;
mod explain;
mod facts;
mod remedies;
mod split;
mod status;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use crate::cluster::Cluster;

/// Look after DS4Deployments.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-ds4",
    bin_name = "kubectl ds4",
    version,
    about,
    propagate_version = true,
    max_term_width = 110
)]
struct Arguments {
    /// Namespace [default: the context's].
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show deployments as a tree: pipelines, stages, pods, and how far each is loaded.
    #[command(
        after_help = "Examples:\n  kubectl ds4 status\n  kubectl ds4 status flash -n llm\n  kubectl ds4 status --all-namespaces"
    )]
    Status {
        /// One deployment [default: all].
        name: Option<String>,
        /// All namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Say why a deployment is not ready, and what helps; exits with 1 when something is wrong.
    #[command(after_help = "Example:\n  kubectl ds4 explain flash -n llm")]
    Explain {
        /// The deployment.
        name: String,
    },
    /// Draw the last request with a KV handoff as bars over time, from what an OpenTelemetry collector wrote.
    #[command(
        after_help = "Examples:\n  kubectl ds4 trace --file traces.json\n  kubectl exec -n observability deploy/collector -- cat /traces.json | kubectl ds4 trace --file -"
    )]
    Trace {
        /// File of the collector's file exporter (OTLP as JSON lines); - is standard input.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// This trace instead of the last one with a handoff; the id of a response's traceparent header.
        #[arg(long, value_name = "ID")]
        id: Option<String>,
    },
    /// Propose stages for a model on nodes: which layers go where, so that the slowest stage is as fast as it can be.
    #[command(after_help = split::HELP)]
    Split(split::Arguments),
    /// Print a completion script.
    #[command(after_help = "Example:\n  kubectl ds4 completion bash > /etc/bash_completion.d/kubectl-ds4")]
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kubectl ds4: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
async fn run(arguments: Arguments) -> Result<bool> {
    let Arguments {
        namespace,
        context,
        command,
    } = arguments;
    let cluster = || Cluster::connect(context.as_deref(), namespace.as_deref());
    match command {
        Command::Status { name, all_namespaces } => {
            let views = cluster().await?.views(name.as_deref(), all_namespaces).await?;
            print!("{}", status::render(&views));
            Ok(true)
        }
        Command::Explain { name } => {
            let cluster = cluster().await?;
            let view = cluster.view(&name).await?;
            let findings = explain::findings(&view, &cluster.events(&view).await?);
            print!("{}", explain::render(&view, &findings));
            Ok(findings.is_empty())
        }
        Command::Trace { file, id } => {
            print!("{}", trace::waterfall(&trace::read(&file)?, id.as_deref())?);
            Ok(true)
        }
        Command::Split(arguments) => {
            let parts = split::parts(&arguments.model)?;
            let nodes = if arguments.machines.is_empty() {
                let cluster = cluster()
                    .await
                    .context("no --machine was given, so the cluster's nodes are asked for")?;
                split::nodes(&cluster.nodes(arguments.selector.as_deref()).await?)
            } else {
                arguments.machines.clone()
            };
            print!("{}", split::propose(&parts, &nodes)?);
            Ok(true)
        }
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "kubectl-ds4",
                &mut std::io::stdout(),
            );
            Ok(true)
        }
    }
}
