//! `ds4 health`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::HealthArguments;

/// A healthy stage answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: HealthArguments) -> Result<()> {
    let named = || arguments.address.clone();
    let endpoint = Endpoint::from_shared(format!("http://{}", arguments.address)).with_context(named)?;
    let channel = endpoint
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT)
        .connect()
        .await
        .with_context(named)?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let status = HealthClient::new(channel)
        .check(request)
        .await
        .with_context(named)?
        .into_inner()
        .status();
    ensure!(
        status == ServingStatus::Serving,
        "{}: expected it to serve, found {status:?}",
        arguments.address
    );
    println!("{}: serving", arguments.address);
    Ok(())
}
