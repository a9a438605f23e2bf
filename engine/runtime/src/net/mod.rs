//! Connections between pods: plain, or with certificates on both ends.

mod incoming;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::stage_client::StageClient;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub(crate) use incoming::incoming;
pub use tls::{Tls, TlsError};

/// HTTP/2 windows: a frame must not wait for a round trip. At the largest frame, one in flight and one behind it on each stream.
pub(crate) const STREAM_WINDOW: u32 = 8 << 20;
/// Several streams share a connection.
pub(crate) const CONNECTION_WINDOW: u32 = 32 << 20;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// Makes connections to stages.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    tls: Option<Arc<Tls>>,
}

impl Dialer {
    /// With the certificates of `tls`; without them everything is sent in the clear.
    #[must_use]
    pub const fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls }
    }

    /// A connection of its own, made at first use and again after it broke.
    ///
    /// # Errors
    /// When `endpoint` is no address.
    pub fn channel(&self, endpoint: &str, timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        let address = if endpoint.contains("://") {
            endpoint.to_owned()
        } else {
            format!("http://{endpoint}")
        };
        let endpoint = Endpoint::from_shared(address)?
            .connect_timeout(timeout.min(CONNECT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(timeout.min(Duration::from_secs(10)))
            .tcp_nodelay(true);
        let Some(tls) = self.tls.clone() else {
            return Ok(endpoint.connect_lazy());
        };
        Ok(endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| connect(Arc::clone(&tls), uri))))
    }

    /// A client of the stage at `endpoint`.
    pub(crate) fn stage(
        &self,
        endpoint: &str,
        timeout: Duration,
    ) -> Result<StageClient<Channel>, tonic::transport::Error> {
        let client = StageClient::new(self.channel(endpoint, timeout)?);
        Ok(client
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES))
    }
}

async fn connect(
    tls: Arc<Tls>,
    uri: Uri,
) -> std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let host = uri.host().unwrap_or_default();
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(tls.connect(host, stream).await?))
}

/// What went wrong with a call, with the causes that the transport knows.
pub(crate) fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
