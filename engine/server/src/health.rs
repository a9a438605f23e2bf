//! `/healthz`, `/readyz`, `/metrics`, `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use ds4_runtime::{EngineStatus, OnFailure, RouteState};
use ds4_telemetry::metrics::Metrics;
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, Shape};

/// The process runs.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Requests can be answered.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let Some(loaded) = app.loaded() else {
        let reason = format!("not ready: the model is loading: {} %\n", app.percent());
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    };
    let (status, text) = readiness(&loaded.engine.status(), loaded.engine.options().on_failure);
    (status, text).into_response()
}

/// Ready once the route was complete; a later loss degrades where requests are recomputed, and unreadies where they would fail.
fn readiness(status: &EngineStatus, on_failure: OnFailure) -> (StatusCode, String) {
    let unready = |reason: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"));
    if let Some(reason) = &status.broken {
        return unready(&format!("the device failed, and the server restarts: {reason}"));
    }
    if status.shutting_down {
        return unready("shutting down");
    }
    match &status.route {
        RouteState::None | RouteState::Complete => (StatusCode::OK, "ready\n".into()),
        RouteState::Connecting => unready("the route is connecting"),
        RouteState::Incomplete { reason }
            if status.route_was_complete && on_failure == OnFailure::RecomputeLocally =>
        {
            (StatusCode::OK, format!("degraded: {reason}\n"))
        }
        RouteState::Incomplete { reason } => unready(reason),
    }
}

pub(crate) async fn metrics() -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], Metrics::global().render()).into_response()
}

/// The one model, in a form that both OpenAI's and Anthropic's clients read.
fn card(app: &App) -> Value {
    let created =
        jiff::Timestamp::from_second(i64::try_from(app.created).unwrap_or_default()).unwrap_or_default();
    let mut model = json!({
        "id": app.options.model, "object": "model", "created": app.created, "owned_by": "ds4",
        "type": "model", "display_name": app.options.model, "created_at": created.to_string(),
    });
    if let Some(loaded) = app.loaded() {
        model["context_length"] = loaded.engine.options().max_tokens.into();
    }
    model
}

pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    let name = &app.options.model;
    Json(
        json!({"object": "list", "data": [card(&app)], "has_more": false, "first_id": name, "last_id": name}),
    )
    .into_response()
}

pub(crate) async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    if id == app.options.model {
        return Json(card(&app)).into_response();
    }
    ApiError::unknown_model(&id, &app.options.model).response(Shape::OpenAi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_route_and_the_policy() {
        let incomplete = RouteState::Incomplete {
            reason: "stage a: gone".into(),
        };
        let status = |route: &RouteState, was| EngineStatus {
            route: route.clone(),
            route_was_complete: was,
            requests: 0,
            cached_sessions: 0,
            shutting_down: false,
            broken: None,
        };
        let code =
            |route: &RouteState, was, on_failure| readiness(&status(route, was), on_failure).0.as_u16();
        assert_eq!(
            code(&RouteState::Connecting, false, OnFailure::RecomputeLocally),
            503
        );
        assert_eq!(code(&RouteState::Complete, true, OnFailure::Fail), 200);
        assert_eq!(code(&incomplete, false, OnFailure::RecomputeLocally), 503);
        assert_eq!(code(&incomplete, true, OnFailure::RecomputeLocally), 200);
        assert_eq!(code(&incomplete, true, OnFailure::Fail), 503);
        assert_eq!(
            readiness(&status(&incomplete, true), OnFailure::RecomputeLocally).1,
            "degraded: stage a: gone\n"
        );
        let broken = EngineStatus {
            broken: Some("GPU: attend: lost".into()),
            ..status(&RouteState::None, false)
        };
        let (code, text) = readiness(&broken, OnFailure::RecomputeLocally);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("GPU: attend: lost"), "{text}");
    }
}
