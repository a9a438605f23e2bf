//! Anthropic's surface: `/v1/messages` and `/v1/messages/count_tokens`.

mod answer;
mod request;

#[cfg(test)]
pub(crate) use answer::Answer;

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde_json::json;

use crate::app::App;
use crate::ask::body;
use crate::error::{ApiError, Shape};
use crate::respond::Call;

pub(crate) async fn post(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let call = Call {
        app: &app,
        headers: &headers,
        route: "POST /v1/messages",
    };
    let answered = call.respond(Shape::Anthropic, |loaded| {
        let ask = request::understand(&body::read(body)?, &app.options.model, loaded)?;
        Ok((ask, answer::Answer::new(&app)))
    });
    answered.await
}

/// How long the prompt of such a request is; nothing is computed.
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let count = || {
        let loaded = app.loaded().ok_or_else(|| ApiError::loading(app.percent()))?;
        request::count(&body::read(body)?, &app.options.model, loaded)
    };
    match count() {
        Ok(tokens) => Json(json!({"input_tokens": tokens})).into_response(),
        Err(error) => error.response(Shape::Anthropic),
    }
}
