//! One of several replicas reconciles: the one that holds the Lease.

use anyhow::{Context, Result};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The Lease's name.
const LEASE: &str = "ds4-operator";
/// A leader that is silent this long, in seconds, is succeeded.
const DURATION_SECONDS: u64 = 15;
/// It renews this long, in seconds, before that.
const GRACE_SECONDS: u64 = 5;

/// A place in the line of replicas.
pub(crate) struct Election {
    turn: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, kube_lease_manager::LeaseManagerError>>,
}

impl Election {
    /// Stands for election.
    pub(crate) async fn enter(client: &Client, namespace: &str, identity: &str) -> Result<Self> {
        let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(DURATION_SECONDS)
            .with_grace(GRACE_SECONDS)
            .build()
            .await
            .with_context(|| format!("the Lease {namespace}/{LEASE}"))?;
        let (turn, task) = manager.watch().await;
        Ok(Self { turn, task })
    }

    /// Resolves when this replica leads, or no longer leads.
    ///
    /// # Errors
    /// When the Lease cannot be kept at all.
    pub(crate) async fn until(&mut self, leads: bool) -> Result<()> {
        self.turn
            .wait_for(|turn| *turn == leads)
            .await
            .context("the election ended")?;
        Ok(())
    }

    /// Leaves the line; a leader's successor need not wait.
    pub(crate) async fn leave(self) {
        let Self { turn, task } = self;
        drop(turn);
        match task.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "leaving the election"),
            Err(error) => tracing::warn!(%error, "leaving the election"),
        }
    }
}
