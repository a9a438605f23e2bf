//! `ds4 health`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ds4_runtime::Dialer;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::HealthArguments;

/// A healthy stage answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: HealthArguments) -> Result<()> {
    let named = || arguments.address.clone();
    let tls = super::certificates(&arguments.tls)?;
    let channel = Dialer::new(tls)
        .channel(&arguments.address, TIMEOUT)
        .with_context(named)?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let mut client = HealthClient::new(channel);
    let answer = tokio::time::timeout(TIMEOUT, client.check(request)).await;
    let answer = answer.with_context(|| format!("{}: nothing came within {TIMEOUT:?}", arguments.address))?;
    let status = answer.with_context(named)?.into_inner().status();
    ensure!(
        status == ServingStatus::Serving,
        "{}: expected it to serve, found {status:?}",
        arguments.address
    );
    println!("{}: serving", arguments.address);
    Ok(())
}
