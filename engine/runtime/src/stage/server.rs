//! The gRPC server around a slice.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ds4_model::ModelSlice;
use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::stage_server::StageServer as Generated;
use futures::Stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;
use tower::util::MapResponseLayer;

use super::answer::with_messages;
use super::service::Service;
use super::session::Sessions;
use super::table::Limits;
use super::worker::Shared;
use crate::host::Host;
use crate::net::{CONNECTION_WINDOW, HTTP_FRAME, Io, STREAM_WINDOW, Tls, incoming};
use crate::watched::Watched;
use crate::{Identity, StageError};

/// How often lapsed leases are looked for.
const SWEEP: Duration = Duration::from_millis(250);

/// A stage whose device broke waits so long for its sessions to hear of it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Limits of a stage.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// Sessions that work at once; more are refused.
    pub sessions: usize,
    /// Tokens in the longest session.
    pub max_tokens: u64,
    /// Bytes of KV of all sessions together.
    pub kv_budget: u64,
    /// How long a session is safe after its owner last renewed it.
    pub lease: Duration,
    /// How long it may stay after that, if nobody needs its room.
    pub idle: Duration,
    /// How long a stage that should end waits for its sessions.
    pub drain_timeout: Duration,
    /// Certificates of this and the other pods; none: everything is in the clear.
    pub tls: Option<Arc<Tls>>,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            sessions: 8,
            max_tokens: 1 << 20,
            kv_budget: 8 << 30,
            lease: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(300),
            tls: None,
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

    /// Serves until `shutdown` resolves; then takes no new work, finishes what runs, and ends when no lease is left or the drain timeout is
    /// over. Sessions that are still there then end with a refusal that says so. Also answers `grpc.health.v1`.
    ///
    /// # Errors
    /// When the transport fails, or the device is beyond repair: then after the sessions have heard of it.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), StageError> {
        self.serve_with_probes(listener, None, shutdown).await
    }

    /// As [`Self::serve`]; `grpc.health.v1` alone is also answered on `probes`, in the clear: who watches over the process need not have one
    /// of its certificates.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub async fn serve_with_probes(
        self,
        listener: TcpListener,
        probes: Option<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), StageError> {
        let tls = self.options.tls.clone();
        let _ = listener
            .local_addr()
            .map(|address| tracing::info!(%address, encrypted = tls.is_some(), "stage serves"));
        let (host, sessions) = (Host::real(tls.clone()), self.sessions());
        self.serve_on(host, sessions, incoming(listener, tls), probes, shutdown)
            .await
    }

    /// The sessions of one run of this stage.
    pub(crate) fn sessions(&self) -> Arc<Sessions> {
        Arc::new(Sessions::new(self.limits(), CancellationToken::new()))
    }

    /// As [`StageServer::serve`], on `host` and over any connections.
    pub(crate) async fn serve_on(
        self,
        host: Host,
        sessions: Arc<Sessions>,
        connections: impl Stream<Item = std::io::Result<Io>>,
        probes: Option<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), StageError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let probed = probes.map(|probes| {
            let health = Server::builder().add_service(health_service.clone());
            tokio::spawn(health.serve_with_incoming(incoming(probes, None)))
        });
        let watched = Watched::new(self.slice);
        let shared = Shared {
            slice: Arc::clone(&watched) as _,
            compute: host.compute(()),
            dialer: host.dialer,
            sessions: Arc::clone(&sessions),
            costs: Arc::default(),
        };
        let drain_timeout = self.options.drain_timeout;
        let service = Generated::new(Service::new(shared, self.identity, self.options));
        health.set_serving::<Generated<Service>>().await;
        let sweeping = tokio::spawn(sweep(Arc::downgrade(&sessions)));
        let ended = async {
            tokio::select! {
                () = shutdown => drain(&sessions, &health, drain_timeout).await,
                reason = watched.broken() => {
                    tracing::error!(reason, "the device is beyond repair");
                    drain(&sessions, &health, LAST_WORDS.min(drain_timeout)).await;
                }
            }
            sessions.stop();
        };
        let served = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(HTTP_FRAME)
            .layer(MapResponseLayer::new(with_messages))
            .add_service(health_service)
            .add_service(
                service
                    .max_decoding_message_size(MESSAGE_BYTES)
                    .max_encoding_message_size(MESSAGE_BYTES),
            )
            .serve_with_incoming_shutdown(connections, ended)
            .await;
        sweeping.abort();
        if let Some(probed) = probed {
            probed.abort();
        }
        served?;
        watched
            .reason()
            .map_or(Ok(()), |reason| Err(StageError::Broken(reason)))
    }

    const fn limits(&self) -> Limits {
        Limits {
            working: self.options.sessions,
            bytes: self.options.kv_budget,
            lease: self.options.lease,
            idle: self.options.idle,
        }
    }
}

async fn sweep(sessions: std::sync::Weak<Sessions>) {
    while let Some(sessions) = sessions.upgrade() {
        sessions.sweep();
        drop(sessions);
        tokio::time::sleep(SWEEP).await;
    }
}

/// No new work; what runs is finished and handed over.
async fn drain(sessions: &Sessions, health: &HealthReporter, timeout: Duration) {
    sessions.drain();
    health.set_not_serving::<Generated<Service>>().await;
    health
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
    tracing::info!(?timeout, "draining: no new work is taken");
    match tokio::time::timeout(timeout, sessions.idle()).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => tracing::warn!(?timeout, "sessions are left at the end of the drain timeout"),
    }
}
