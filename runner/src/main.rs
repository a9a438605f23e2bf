//! `ds4-runner`: a Mac as a node of Kubernetes that runs stages of `DS4Deployment`s as native processes, and nothing else.
//!
//! [`admission`] decides which pods run here and what a pod comes to (a [`plan`]); a [`worker`] lives one pod's life: volumes from
//! [`material`] in its [`folder`], runs of its containers under a [`shim`] that outlives the runner, [`probe`]s, and [`facts`] that
//! [`report`] tells the API server. The [`node`] keeps its Lease; the kubelet's [`api`] serves [`logs`]. All logic is the same on Linux,
//! so that a Linux process can stand in for a Mac in tests; what differs is in [`host`].
#![allow(clippy::print_stdout)] // commands print their results

mod admission;
mod agent;
mod api;
mod backoff;
mod config;
mod credentials;
mod facts;
mod files;
mod folder;
mod host;
mod install;
mod invitation;
mod logs;
mod material;
mod node;
mod plan;
mod probe;
mod quantity;
mod report;
mod run;
mod shim;
mod worker;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use jiff::Timestamp;

use agent::{Agent, Shared};
use config::Config;
use credentials::{Purpose, client, obtain};
use invitation::Invitation;

/// A Mac as a node that runs stages of `DS4Deployment`s.
#[derive(Debug, Parser)]
#[command(name = "ds4-runner", version, about)]
enum Arguments {
    /// Join the cluster and run the stages that are bound to this node.
    #[command(
        after_help = "Example:\n  sudo ds4-runner run --config /etc/ds4-runner/config.yaml\n\nEngines go on when the runner ends; the next one takes them over."
    )]
    Run {
        #[command(flatten)]
        place: Place,
    },
    /// Check the configuration and make the runner a service of launchd.
    #[command(
        after_help = "Example:\n  sudo ds4-runner install --config mac-1.config.yaml --invitation mac-1.yaml"
    )]
    Install {
        #[command(flatten)]
        place: Place,
        /// What `ds4-runner invite` wrote.
        #[arg(long, value_name = "FILE")]
        invitation: PathBuf,
    },
    /// What runs on this node, from the runner's own files.
    #[command(after_help = "Example:\n  sudo ds4-runner status")]
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Stop the service and every engine, and remove the runner's files.
    #[command(
        after_help = "Example:\n  kubectl drain mac-1 && sudo ds4-runner uninstall && kubectl delete node mac-1"
    )]
    Uninstall {
        #[command(flatten)]
        place: Place,
    },
    /// With an administrator's kubeconfig: print an invitation for a machine, to be kept secret.
    #[command(
        after_help = "Example:\n  ds4-runner invite mac-1 --server https://192.168.1.2:6443 > mac-1.yaml"
    )]
    Invite {
        /// Name of the node.
        node: String,
        /// Address of the API server as the machine reaches it [default: the kubeconfig's].
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// How long it may be used.
        #[arg(long, default_value_t = 1, value_name = "HOURS", value_parser = clap::value_parser!(i64).range(1..=168))]
        hours: i64,
    },
    /// With an administrator's kubeconfig: approve the two certificates that an invited machine asks for.
    #[command(after_help = "Example:\n  ds4-runner approve mac-1")]
    Approve {
        /// Name of the node.
        node: String,
        /// How long to wait for its requests.
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        timeout: u64,
    },
    /// The parent of one engine.
    #[command(hide = true)]
    Shim { folder: PathBuf },
}

/// Where the configuration is.
#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// The configuration.
    #[arg(long, env = "DS4_RUNNER_CONFIG", default_value = config::PLACE, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    match command(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: Arguments) -> Result<()> {
    match arguments {
        // Small: no runtime, no log, no TLS.
        Arguments::Shim { folder } => return shim::run(&folder),
        Arguments::Status { place } => print!("{}", install::status(&place.config)?),
        Arguments::Uninstall { place } => println!("{}", install::uninstall(&place.config)?),
        Arguments::Install { place, invitation } => {
            println!("{}", install::install(&place.config, &invitation)?);
        }
        Arguments::Invite { node, server, hours } => {
            let invitation = runtime()?.block_on(invitation::invite(&node, server, hours))?;
            print!("{}", serde_yaml::to_string(&invitation)?);
        }
        Arguments::Approve { node, timeout } => {
            let patience = Duration::from_secs(timeout);
            for name in runtime()?.block_on(invitation::approve(&node, patience))? {
                println!("approved {name}");
            }
        }
        Arguments::Run { place } => {
            log();
            return runtime()?.block_on(run(&place.config));
        }
    }
    Ok(())
}

/// One thread is enough for a node with one stage, and costs nothing at rest.
fn runtime() -> Result<tokio::runtime::Runtime> {
    // A second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Log lines on standard error; level by `RUST_LOG`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

async fn run(path: &std::path::Path) -> Result<()> {
    let program = std::env::current_exe().context("the runner's own program")?;
    let program = run::PROGRAM.get_or_init(|| program);
    let config = Arc::new(Config::read(path)?);
    for engine in &config.engines {
        engine.verify()?;
    }
    let invitation = Invitation::read(&config.invitation, &config.node)?;
    let own = match credentials::Pair::kept(&config, Purpose::Client, Timestamp::now()) {
        Some(pair) => pair,
        None => obtain(&client(&invitation, None)?, &config, Purpose::Client).await?,
    };
    let client = client(&invitation, Some(&own))?;
    let (evict, evictions) = tokio::sync::watch::channel(None);
    let agent = Agent::new(Shared::new(client.clone(), Arc::clone(&config)), evictions);
    let serving = async {
        let pair = obtain(&client, &config, Purpose::Serving).await?;
        let api = api::serve(client.clone(), Arc::clone(&config), &invitation, &pair);
        tokio::select! { ended = api => ended, () = expires(&pair) => Ok(()), () = expires(&own) => Ok(()) }
    };
    tokio::select! {
        kept = node::keep(client.clone(), Arc::clone(&config), evict) => kept,
        ended = agent.run() => ended,
        renewed = serving => {
            renewed?;
            again(program)
        }
        () = signal() => {
            tracing::info!("ends; engines go on");
            Ok(())
        }
    }
}

/// Until a certificate has to be replaced.
async fn expires(pair: &credentials::Pair) {
    let left = pair
        .renewal()
        .ok()
        .and_then(|renewal| Duration::try_from(renewal - Timestamp::now()).ok());
    tokio::time::sleep(left.unwrap_or_default()).await;
}

/// Becomes a new runner, which asks for new certificates: engines do not notice.
fn again(program: &std::path::Path) -> Result<()> {
    tracing::info!("a certificate has to be replaced: starting anew");
    let error = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("starting anew")
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = &mut signals else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}
