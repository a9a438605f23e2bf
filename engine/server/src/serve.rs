//! Routes and the listener.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use crate::error::ApiError;
use crate::{completions, health};

/// Largest request body: a million tokens of text with room to spare.
const BODY_BYTES: usize = 16 << 20;

/// The application.
pub fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::completion))
        .route("/v1/models", get(health::models))
        .layer(from_fn_with_state(Arc::clone(&app), authorize))
        .layer(DefaultBodyLimit::max(BODY_BYTES));
    Router::new()
        .merge(keyed)
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(|request: Request| async move { ApiError::not_found(request.uri().path()).into_response() })
        .layer(CatchPanicLayer::new())
        .with_state(app)
}

/// Serves until `shutdown` resolves; then no new connections, and the open ones end in peace.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(app))
        .with_graceful_shutdown(shutdown)
        .await
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let keys = &app.options.api_keys;
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = given
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    if keys.is_empty() || keys.iter().any(|key| same(key.as_bytes(), given.as_bytes())) {
        return next.run(request).await;
    }
    ApiError::unauthorized().into_response()
}

/// Compares without stopping at the first difference, so that time does not tell how much was right.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
}
