//! The loop: stand for election, watch, reconcile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use ds4_api::DS4Deployment;
use futures::StreamExt;
use jiff::SignedDuration;
use kube::Client;
use kube::api::ListParams;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::{Recorder, Reporter};

use crate::apply::MANAGER;
use crate::build::Defaults;
use crate::caches::{Caches, controller, scoped};
use crate::certificates::{Certificates, Lifetimes};
use crate::failpoint::Failpoint;
use crate::leader::Election;
use crate::metrics::Metrics;
use crate::reconcile::{Context, failed, reconcile};
use crate::{RunArguments, health, retry};

/// Deployments that are looked at side by side. Each writes its objects side by side as well: when all of them change at once, the API server
/// is what takes time, and more of them would only wait for it together.
const CONCURRENCY: u16 = 4;
/// Changes that come this close together are looked at once.
const DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(100);

/// Eight lives of the longest certificate, of which three are needed to pass from one authority to the next.
const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Reconciles until a signal, or until another replica leads.
pub(crate) async fn run(arguments: RunArguments) -> Result<()> {
    let client = Client::try_default()
        .await
        .context("the API server: no cluster configuration")?;
    let (ready, metrics) = (Arc::new(AtomicBool::new(false)), Arc::new(Metrics::new()));
    tokio::spawn({
        let (address, ready, metrics) = (arguments.listen.clone(), Arc::clone(&ready), Arc::clone(&metrics));
        async move {
            if let Err(error) = health::serve(&address, ready, metrics).await {
                tracing::error!(error = format!("{error:#}"), "health server");
            }
        }
    });
    served(&client, arguments.watch_namespace.as_deref()).await?;
    ready.store(true, Ordering::Relaxed);
    let Some(namespace) = arguments.lease_namespace.clone() else {
        metrics.leads(true);
        return operate(&client, arguments, metrics, std::future::pending()).await;
    };
    let mut election = Election::enter(&client, &namespace, &identity()).await?;
    tokio::select! {
        turn = election.until(true) => turn?,
        () = signal() => {
            election.leave().await;
            return Ok(());
        }
    }
    tracing::info!(identity = identity(), "leads");
    metrics.leads(true);
    let lost = async { election.until(false).await };
    let outcome = operate(&client, arguments, metrics, lost).await;
    election.leave().await;
    outcome
}

/// Asks once, so that a missing definition is said and not waited for.
async fn served(client: &Client, namespace: Option<&str>) -> Result<()> {
    let deployments = scoped::<DS4Deployment>(client, namespace);
    let listed = deployments.list(&ListParams::default().limit(1)).await;
    listed.context("listing DS4Deployments: is the CustomResourceDefinition installed? (ds4-operator crd | kubectl apply -f -)")?;
    Ok(())
}

fn identity() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| format!("process-{}", std::process::id()))
}

async fn operate(
    client: &Client,
    arguments: RunArguments,
    metrics: Arc<Metrics>,
    lost: impl Future<Output = Result<()>>,
) -> Result<()> {
    let namespace = arguments.watch_namespace.clone();
    let (controller, caches) = controller(client, namespace.as_deref());
    tracing::info!(image = %arguments.engine_image, namespace = namespace.as_deref().unwrap_or("all"), "operator runs");
    let context = context(client, arguments, caches, metrics)?;
    tokio::select! {
        () = reconcile_all(controller, context) => Ok(()),
        lost = lost => {
            lost?;
            bail!("another replica leads: ending, to start again as its stand-in")
        }
    }
}

fn context(
    client: &Client,
    arguments: RunArguments,
    caches: Caches,
    metrics: Arc<Metrics>,
) -> Result<Arc<Context>> {
    let reporter = Reporter {
        controller: MANAGER.into(),
        instance: Some(identity()),
    };
    let seconds =
        i64::try_from(arguments.certificate_lifetime_seconds).context("--certificate-lifetime-seconds")?;
    let lifetimes = Lifetimes {
        certificate: SignedDuration::from_secs(seconds),
        authority: AUTHORITY_LIFETIME,
    };
    Ok(Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        caches,
        defaults: Defaults {
            image: arguments.engine_image,
            pull_policy: arguments.engine_image_pull_policy,
        },
        certificates: arguments
            .managed_certificates
            .then(|| Certificates::new(lifetimes)),
        metrics,
        retries: retry::Retries::default(),
        failpoint: Failpoint::new(arguments.end_after),
    }))
}

async fn reconcile_all(controller: Controller<DS4Deployment>, context: Arc<Context>) {
    controller
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .shutdown_on_signal()
        .run(
            move |deployment, context| async move {
                // Nothing is decided before every cache is filled; later this returns at once.
                if context.caches.filled().await.is_err() {
                    return Err(crate::error::Error::Watch);
                }
                reconcile(deployment, context).await
            },
            failed,
            context,
        )
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "reconciliation");
            }
        })
        .await;
}

/// Resolves on an interrupt or a request to terminate.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}
