//! `ds4 stage`.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use ds4_gguf::LayerSpan;
use ds4_runtime::{StageOptions, StageServer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::args::StageArguments;
use crate::local_stages::LISTENING;
use crate::{load, telemetry};

pub(crate) async fn run(arguments: StageArguments) -> Result<()> {
    let _telemetry = telemetry::start(&arguments.telemetry, "stage", &arguments.layers)?;
    let model = load::open(&arguments.compute.model)?;
    let span = LayerSpan::parse(&arguments.layers, model.config.n_layer)?;
    ensure!(
        !span.head,
        "--layers: expected A:B, found {span}: the output stage is `ds4 serve`"
    );
    let listener = TcpListener::bind(&arguments.listen)
        .await
        .with_context(|| format!("--listen {}", arguments.listen))?;
    let slice = load::load(
        &model,
        span,
        arguments.max_context,
        &arguments.compute,
        None,
        &|_| {},
    )?;
    println!("{LISTENING}{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let tls = super::certificates(&arguments.tls)?;
    // On its own address nobody else can listen in.
    if tls.is_none() && !listener.local_addr()?.ip().is_loopback() {
        tracing::warn!(
            "no --tls-dir: prompts and KV travel in the clear, and everyone who reaches this port may use it"
        );
    }
    let options = StageOptions {
        sessions: arguments.sessions,
        max_tokens: arguments.max_context,
        kv_budget: arguments.kv_budget,
        lease: arguments.lease,
        idle: arguments.kv_idle,
        drain_timeout: arguments.drain_timeout,
        tls,
    };
    let probes = match &arguments.health_listen {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.with_context(|| format!("--health-listen {address}"))?)
        }
        None => None,
    };
    StageServer::new(slice, options)
        .serve_with_probes(listener, probes, stop(arguments.until_stdin_closes))
        .await?;
    Ok(())
}

/// Ends on a signal, and with the parent where there is one.
async fn stop(until_stdin_closes: bool) {
    let signal = super::serve::signal();
    if !until_stdin_closes {
        return signal.await;
    }
    let closed = async {
        let mut input = tokio::io::stdin();
        let mut buffer = [0; 64];
        while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = signal => {}
        () = closed => {}
    }
}
