//! The gRPC server around a slice.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ds4_model::ModelSlice;
use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::stage_server::StageServer as Generated;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::service::Service;
use super::session::Sessions;
use crate::Identity;

/// HTTP/2 windows: a frame must not wait for a round trip. Two frames in flight per stream, eight per connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Limits of a stage.
#[derive(Clone, Copy, Debug)]
pub struct StageOptions {
    /// Sessions at once; more are refused.
    pub sessions: usize,
    /// Tokens in the longest session.
    pub max_tokens: u64,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            sessions: 8,
            max_tokens: 1 << 20,
        }
    }
}

/// Serves one slice.
#[derive(Clone)]
pub struct StageServer {
    slice: Arc<dyn ModelSlice>,
    identity: Identity,
    options: StageOptions,
}

impl std::fmt::Debug for StageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StageServer")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl StageServer {
    /// A stage of its own incarnation.
    #[must_use]
    pub fn new(slice: Arc<dyn ModelSlice>, options: StageOptions) -> Self {
        let identity = Identity::new(slice.info(), options.max_tokens);
        Self {
            slice,
            identity,
            options,
        }
    }

    /// Serves until `shutdown` resolves; sessions then end with a refusal that says so. Also answers `grpc.health.v1`.
    ///
    /// # Errors
    /// When the transport fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let stop = CancellationToken::new();
        let sessions = Arc::new(Sessions::new(self.options.sessions, stop.clone()));
        let service = Generated::new(Service::new(self.slice, self.identity, self.options, sessions));
        health.set_serving::<Generated<Service>>().await;
        let _ = listener
            .local_addr()
            .map(|address| tracing::info!(%address, "stage serves"));
        let ended = async {
            shutdown.await;
            stop.cancel();
        };
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .tcp_nodelay(true)
            .add_service(health_service)
            .add_service(
                service
                    .max_decoding_message_size(MESSAGE_BYTES)
                    .max_encoding_message_size(MESSAGE_BYTES),
            )
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), ended)
            .await
    }
}
