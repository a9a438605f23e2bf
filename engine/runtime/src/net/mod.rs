//! Connections between pods: plain, or with certificates on both ends.

pub(crate) mod beside;
mod incoming;
mod pieces;
mod tls;
mod wire;

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

use self::wire::{Counted, Duplex};

pub(crate) use incoming::{Io, incoming};
pub(crate) use pieces::Pieces;
pub use tls::{Tls, TlsError};
pub(crate) use wire::Link;

/// HTTP/2 windows: a frame must not wait for a round trip. At the largest frame, one in flight and one behind it on each stream.
pub(crate) const STREAM_WINDOW: u32 = 8 << 20;
/// Several streams share a connection.
pub(crate) const CONNECTION_WINDOW: u32 = 32 << 20;
/// Of a KV stream, which has a connection of its own and time, since it is hidden behind prefill: what is on the way may take the receiver's memory, so
/// that it is two frames of the usual size. Half of it is slower: it leaves the stage without work whenever either end's processor is busy
/// otherwise (`cargo xtask bench handoff`).
const KV_WINDOW: u32 = 2 << 20;
/// Bytes in one frame of HTTP/2: each is a write, a read and a piece to put together. The default is 16 KiB; larger ones than this take more memory
/// and are no faster (`cargo xtask bench handoff`: 32 to 256 KiB with windows of 0.5 to 2 MiB are within its noise).
/// With its head of nine bytes a frame fills what TLS takes at once, four records: were it larger by these, each would end in a record and a write
/// of nine bytes.
pub(crate) const HTTP_FRAME: u32 = (64 << 10) - 9;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// Makes connections to stages.
#[derive(Clone, Debug)]
pub struct Dialer(Way);

/// How bytes get there.
#[derive(Clone, Debug)]
enum Way {
    Tcp(Option<Arc<Tls>>),
    /// The network of a test, from one of its nodes.
    #[cfg(test)]
    Simulated(crate::sim::Port),
}

impl Dialer {
    /// With the certificates of `tls`; without them everything is sent in the clear.
    #[must_use]
    pub const fn new(tls: Option<Arc<Tls>>) -> Self {
        Self(Way::Tcp(tls))
    }

    #[cfg(test)]
    pub(crate) const fn simulated(port: crate::sim::Port) -> Self {
        Self(Way::Simulated(port))
    }

    /// A connection of its own, made at first use and again after it broke.
    ///
    /// # Errors
    /// When `endpoint` is no address.
    pub fn channel(&self, endpoint: &str, timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        self.link(endpoint, timeout, Link::Control)
    }

    pub(crate) fn link(
        &self,
        endpoint: &str,
        timeout: Duration,
        link: Link,
    ) -> Result<Channel, tonic::transport::Error> {
        let address = if endpoint.contains("://") {
            endpoint.to_owned()
        } else {
            format!("http://{endpoint}")
        };
        let (stream, connection) = match link {
            Link::Kv => (KV_WINDOW, KV_WINDOW),
            Link::Control | Link::Hop => (STREAM_WINDOW, CONNECTION_WINDOW),
        };
        let endpoint = Endpoint::from_shared(address)?
            .connect_timeout(timeout.min(CONNECT))
            .initial_stream_window_size(stream)
            .initial_connection_window_size(connection)
            .max_frame_size(HTTP_FRAME)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(timeout.min(Duration::from_secs(10)));
        let way = self.0.clone();
        Ok(endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| {
            let way = way.clone();
            async move { way.connect(uri, link).await.map(TokioIo::new) }
        })))
    }

    /// A client of the stage at `endpoint`.
    pub(crate) fn stage(
        &self,
        endpoint: &str,
        timeout: Duration,
        link: Link,
    ) -> Result<StageClient<Channel>, tonic::transport::Error> {
        let client = StageClient::new(self.link(endpoint, timeout, link)?);
        Ok(client
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES))
    }
}

impl Way {
    async fn connect(self, uri: Uri, link: Link) -> std::io::Result<Box<dyn Duplex>> {
        let host = uri.host().unwrap_or_default();
        let tls = match self {
            Self::Tcp(tls) => tls,
            #[cfg(test)]
            Self::Simulated(port) => return Ok(Box::new(Counted::new(port.connect(&uri).await?, link))),
        };
        let address = (host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443));
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let counted = Counted::new(stream, link);
        match tls {
            None => Ok(Box::new(counted)),
            Some(tls) => Ok(Box::new(tls.connect(host, counted).await?)),
        }
    }
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
