//! `cargo xtask journey`: a user's way through a fresh cluster, and what an operator has to live through.

mod user;

use anyhow::Result;

use crate::cluster::{self, Cluster};
use crate::demo;

/// Runs the journeys on a fresh cluster. Where none can run, says so; in CI that is a failure.
///
/// # Errors
/// Names the stop of the journey that failed.
pub fn run() -> Result<()> {
    if let Err(missing) = cluster::choose(None) {
        if std::env::var_os("CI").is_some() {
            return Err(missing);
        }
        eprintln!("skipped: {missing:#}");
        return Ok(());
    }
    let outcome = demo::cluster("journey", None).and_then(|mut cluster| user::travel(&mut cluster));
    let ended = Cluster::find("journey")?.map_or(Ok(()), Cluster::down);
    outcome.and(ended)
}
