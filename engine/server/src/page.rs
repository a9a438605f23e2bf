//! The status page, and what it shows.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use ds4_runtime::RouteState;
use ds4_telemetry::metrics::Metrics;
use http::header;
use serde_json::json;

use crate::app::App;

/// One page without a build step; it asks for `/status` and may load nothing from elsewhere.
pub(crate) async fn page() -> Response {
    let policy = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// What runs and what ran, for the page and for scripts. Nothing of what was said is in it.
pub(crate) async fn status(State(app): State<Arc<App>>) -> Response {
    let (running, ended) = app.journal.records();
    let metrics = Metrics::global();
    let body = json!({
        "model": app.options.model, "since": app.created, "loading": app.loaded().is_none().then(|| app.percent()),
        "route": app.loaded().map(|loaded| route(&loaded.engine.status().route)),
        "generated": metrics.generated_tokens.get(), "prompted": metrics.prompt_tokens.get(),
        "running": running, "ended": ended,
    });
    Json(body).into_response()
}

fn route(state: &RouteState) -> String {
    match state {
        RouteState::None => "no stages: this pod computes every prompt".into(),
        RouteState::Connecting => "connecting".into(),
        RouteState::Complete => "complete: long prompts are prefilled by the stages".into(),
        RouteState::Incomplete { reason } => format!("incomplete: {reason}"),
    }
}
