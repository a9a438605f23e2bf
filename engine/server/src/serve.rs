//! Routes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, Method, Uri};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::app::App;
use crate::error::{ApiError, Shape};
use crate::{anthropic, health, openai, openapi, page};

/// Largest request body: a million tokens of text with room to spare.
pub(crate) const BODY_BYTES: usize = 16 << 20;

/// A client that sends nothing more of its body for this long has left.
const BODY_STALL: Duration = Duration::from_secs(30);

/// The application.
pub fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(openai::chat::post))
        .route("/v1/completions", post(openai::completions::post))
        .route("/v1/responses", post(openai::responses::post))
        .route("/v1/responses/{id}", get(openai::responses::find))
        .route("/v1/messages", post(anthropic::post))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(health::models))
        .route("/v1/models/{id}", get(health::model))
        .route("/status", get(page::status))
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method(&method, uri.path()).response(Shape::of(uri.path()))
        })
        .layer(from_fn_with_state(Arc::clone(&app), authorize))
        .layer(DefaultBodyLimit::max(BODY_BYTES));
    Router::new()
        .merge(keyed)
        .route("/", get(page::page))
        .route("/openapi.json", get(openapi::document))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(|uri: Uri| async move { ApiError::not_found(uri.path()).response(Shape::of(uri.path())) })
        .layer(RequestBodyTimeoutLayer::new(BODY_STALL))
        .layer(from_fn(name_request))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("something broke while answering").response(Shape::OpenAi)
        }))
        .with_state(app)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.keys.admit(request.headers(), Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.response(Shape::of(request.uri().path())),
    }
}

/// Every answer has a name that clients can quote: theirs, or a new one. OpenAI's and Anthropic's clients read different headers.
async fn name_request(request: Request, next: Next) -> Response {
    const OPENAI: HeaderName = HeaderName::from_static("x-request-id");
    const ANTHROPIC: HeaderName = HeaderName::from_static("request-id");
    let given = request.headers().get(&OPENAI).cloned();
    let made =
        || HeaderValue::from_str(&crate::dialect::id("req_")).unwrap_or(HeaderValue::from_static("req"));
    let name = given.unwrap_or_else(made);
    let mut response = next.run(request).await.into_response();
    response.headers_mut().insert(OPENAI, name.clone());
    response.headers_mut().insert(ANTHROPIC, name);
    response
}
