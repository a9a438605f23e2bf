//! `ds4-operator`: turns every `DS4Deployment` into pods.
//!
//! Reconciliation is a line of steps, each in a file: [`observe`] what exists, [`validate`], [`build`] (pure), [`apply`] (server-side),
//! [`status`] (pure) and write it.
#![allow(clippy::print_stdout)] // `crd` prints its result

mod apply;
mod build;
mod check;
mod error;
mod health;
mod observe;
mod reconcile;
mod status;
mod validate;

use std::process::ExitCode;

use clap::Parser;

/// Operator of `DS4Deployment` resources.
#[derive(Debug, Parser)]
#[command(name = "ds4-operator", version, about)]
enum Arguments {
    /// Reconcile until told to stop.
    #[command(after_help = "Example:\n  ds4-operator run --engine-image registry.example/ds4:0.1.0")]
    Run(RunArguments),
    /// Print the CustomResourceDefinition.
    #[command(after_help = "Example:\n  ds4-operator crd | kubectl apply -f -")]
    Crd,
    /// Ask the API server whether the resource is served and its rules hold; what `helm test` runs.
    Check {
        /// Namespace for the dry runs.
        #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
        namespace: String,
    },
}

/// What `run` needs.
#[derive(Clone, Debug, clap::Args)]
struct RunArguments {
    /// Image of stages that name none.
    #[arg(long, env = "DS4_ENGINE_IMAGE", value_name = "IMAGE")]
    engine_image: String,
    /// When nodes fetch that image.
    #[arg(
        long,
        env = "DS4_ENGINE_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_name = "POLICY"
    )]
    engine_image_pull_policy: String,
    /// Where /healthz and /readyz are served.
    #[arg(
        long,
        env = "DS4_OPERATOR_LISTEN",
        default_value = "0.0.0.0:8080",
        value_name = "ADDR"
    )]
    listen: String,
    /// Watch one namespace instead of all.
    #[arg(long, env = "DS4_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    watch_namespace: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments {
        Arguments::Crd => {
            print!("{}", ds4_api::crd_yaml()?);
            Ok(())
        }
        Arguments::Check { namespace } => check::run(&namespace).await,
        Arguments::Run(arguments) => reconcile::run(arguments).await,
    }
}
