//! Connections as they come in.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::Tls;

/// How long a peer may take to prove who it is; until then it costs a task and a socket.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes in progress at once, so that strangers cannot take all sockets.
const HANDSHAKES: usize = 64;
/// Silence after which the kernel asks whether a peer is still there. Work in progress has deadlines of its own, and sessions have leases.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A connection that may be served.
pub(crate) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(test)]
    Simulated(tokio::io::DuplexStream),
}

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Every connection of `listener` that may be served. Ends when the returned stream is dropped.
pub(crate) fn incoming(listener: TcpListener, tls: Option<Arc<Tls>>) -> ReceiverStream<Result<Io>> {
    let (accepted, stream) = mpsc::channel(HANDSHAKES);
    tokio::spawn(async move {
        let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
        loop {
            let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                () = accepted.closed() => return,
            };
            let Ok((connection, peer)) = connection else {
                // Out of descriptors, or a peer that left at once: neither ends the server.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let (accepted, tls) = (accepted.clone(), tls.clone());
            tokio::spawn(async move {
                let _place = place;
                match secure(connection, tls).await {
                    Ok(io) => drop(accepted.send(Ok(io)).await),
                    Err(error) => {
                        tracing::warn!(%peer, %error, "peer refused: expected a certificate of our CA")
                    }
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

async fn secure(connection: TcpStream, tls: Option<Arc<Tls>>) -> Result<Io> {
    connection.set_nodelay(true)?;
    // A peer that is gone without a word costs a socket for so long. Pings of HTTP/2 would do it too, with bytes while others decode.
    socket2::SockRef::from(&connection).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    let Some(tls) = tls else {
        return Ok(Io::Plain(connection));
    };
    let secured = tokio::time::timeout(HANDSHAKE, tls.accept(connection)).await;
    Ok(Io::Tls(Box::new(
        secured.map_err(|_| std::io::ErrorKind::TimedOut)??,
    )))
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            #[cfg(test)]
            Self::Simulated(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io).poll_shutdown(context),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
