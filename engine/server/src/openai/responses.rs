//! `/v1/responses`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::HeaderMap;

use super::responses_events::Responses;
use super::responses_request::{echo, understand};
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
        route: "POST /v1/responses",
    };
    let answered = call.respond(Shape::OpenAi, |loaded| {
        let body = body::read(body)?;
        let ask = understand(&body, &app.options.model, loaded)?;
        let responses = Responses::new(&app.options.model, echo(&body), ask.wishes.logprobs.is_some());
        Ok((ask, responses))
    });
    answered.await
}

/// Responses are not kept: none can be found again.
pub(crate) async fn find(Path(id): Path<String>) -> Response {
    let error = ApiError::not_found(&format!("/v1/responses/{id}"));
    error.response(Shape::OpenAi)
}
