//! Progress for others: `/progress` and `/metrics` over HTTP, and a small file.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::{FetchError, Phase, Progress, Snapshot};

/// How often the file follows.
const PERIOD: Duration = Duration::from_secs(1);

/// Serves `GET /progress` (JSON) and `GET /metrics` until dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, progress: Arc<Progress>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/progress", get(json))
        .route("/metrics", get(metrics))
        .with_state(progress);
    axum::serve(listener, router).await
}

async fn json(State(progress): State<Arc<Progress>>) -> Json<Snapshot> {
    Json(progress.snapshot())
}

async fn metrics(State(progress): State<Arc<Progress>>) -> ([(http::HeaderName, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(http::header::CONTENT_TYPE, kind)], render(&progress.snapshot()))
}

fn render(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    let gauge = |bytes: u64| ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
    registry.register(
        "ds4_fetch_loaded_bytes",
        "Bytes of the wanted layers that are here",
        gauge(snapshot.loaded_bytes),
    );
    registry.register(
        "ds4_fetch_total_bytes",
        "Bytes that the wanted layers take",
        gauge(snapshot.total_bytes),
    );
    registry.register(
        "ds4_fetch_retries",
        "Requests sent again",
        ConstCounter::<u64>::new(snapshot.retries),
    );
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Keeps `path` equal to the state until it is final. The file is written in place: a container's termination log cannot be renamed over.
///
/// # Errors
/// When it cannot be written.
pub async fn keep_file(path: &Path, progress: &Progress) -> Result<(), FetchError> {
    loop {
        let snapshot = progress.snapshot();
        let text = serde_json::to_vec(&snapshot).unwrap_or_default();
        std::fs::File::create(path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(FetchError::io(path))?;
        if matches!(snapshot.phase, Phase::Done | Phase::Failed) {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_both_numbers() {
        let text = render(&Snapshot {
            loaded_bytes: 7,
            total_bytes: 9,
            retries: 2,
            ..Snapshot::default()
        });
        for line in [
            "ds4_fetch_loaded_bytes 7",
            "ds4_fetch_total_bytes 9",
            "ds4_fetch_retries_total 2",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
