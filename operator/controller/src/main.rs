//! `ds4-operator`: turns every `DS4Deployment` into pods.
//!
//! Reconciliation is a line of steps, each in a file: [`observe`] what stands, [`diagnose`] pods in trouble, [`validate`], [`build`]
//! what is wanted, judge the [`progress`] of the [`rollout`], [`apply`] the next step, [`probe`] the routes, and write the [`status`].
//! All but `apply`, `probe`, `loading`, `mounts` and `certificates` are pure.
#![allow(clippy::print_stdout)] // `crd` prints its result

mod apply;
mod authority;
mod build;
mod caches;
mod certificates;
mod check;
mod conditions;
mod diagnose;
mod error;
mod failpoint;
mod failure;
mod health;
mod leader;
mod loading;
mod metrics;
mod mounts;
mod observe;
mod probe;
mod progress;
mod reconcile;
mod retry;
mod rollout;
mod run;
mod status;
mod validate;

use std::io::IsTerminal;
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
    /// Namespace of the Lease by which one of several replicas is chosen; without it this one reconciles at once.
    #[arg(long, env = "DS4_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Whether this operator may keep certificates, for deployments with security.mtls.mode Managed.
    #[arg(long, env = "DS4_MANAGED_CERTIFICATES", default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    managed_certificates: bool,
    /// Life of these certificates; replaced after two thirds of it.
    #[arg(
        long,
        env = "DS4_CERTIFICATE_LIFETIME_SECONDS",
        default_value_t = 90 * 24 * 3600,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(30..=365 * 24 * 3600)
    )]
    certificate_lifetime_seconds: u64,
    /// Log lines as text or json.
    #[arg(long, env = "DS4_LOG_FORMAT", default_value = "text", value_parser = ["text", "json"], value_name = "text|json")]
    log_format: String,
    /// For tests: end the process after this step of a reconciliation.
    #[arg(long, env = "DS4_OPERATOR_END_AFTER", hide = true, value_name = "STEP")]
    end_after: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log(matches!(&arguments, Arguments::Run(run) if run.log_format == "json"));
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Log lines on standard error; level by `RUST_LOG`.
fn log(as_json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if as_json {
        lines.json().init();
    } else {
        lines.init();
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments {
        Arguments::Crd => {
            print!("{}", ds4_api::crd_yaml()?);
            Ok(())
        }
        Arguments::Check { namespace } => check::run(&namespace).await,
        Arguments::Run(arguments) => run::run(arguments).await,
    }
}
