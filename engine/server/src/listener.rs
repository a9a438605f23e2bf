//! The listener: connections with bounds on what a client may send before it is known.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use crate::app::App;
use crate::router;

/// Longest time that a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest head: the names and values of all headers; more is answered with 431.
const HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const HEADERS: usize = 100;
/// After an error of the machine, such as too many open files, others get time to end.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves until `shutdown` resolves; then no new connections, and the open ones end in peace.
///
/// # Errors
/// None at present: what goes wrong with one connection is that connection's.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = router(app);
    let builder = builder();
    let open = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let Some(stream) = usable(stream).await else {
            continue;
        };
        let service = service.clone();
        let answer = service_fn(move |request: Request<Incoming>| answer(service.clone(), request));
        let connection = builder
            .serve_connection(TokioIo::new(stream), answer)
            .into_owned();
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // Clients that leave, or send what is no HTTP, are no event.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    open.shutdown().await;
    Ok(())
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS);
    let most = u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(most)
        .keep_alive_interval(HEAD_TIME);
    builder
}

async fn usable(accepted: io::Result<(TcpStream, std::net::SocketAddr)>) -> Option<TcpStream> {
    match accepted {
        Ok((stream, _)) => {
            // Tokens go out as they come, not when there are many.
            let _ = stream.set_nodelay(true);
            Some(stream)
        }
        Err(error) => {
            tracing::warn!(%error, "no connection was accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

async fn answer(service: axum::Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    service.oneshot(request.map(Body::new)).await
}
