//! Connections as they go out: to the next address, counted byte by byte where they leave the process.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ds4_telemetry::metrics::{Counter, Metrics, WireLabel};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    /// Calls, the prompt, and the activations of the last stage.
    Control,
    /// A stage's KV.
    Kv,
    /// Activations to the next stage.
    Hop,
}

impl Link {
    const fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Kv => "kv",
            Self::Hop => "hop",
        }
    }
}

/// Anything that bytes flow through.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection whose bytes are counted.
pub(crate) struct Counted<T> {
    inner: T,
    sent: Counter,
    received: Counter,
}

impl<T> Counted<T> {
    pub(crate) fn new(inner: T, link: Link) -> Self {
        let counter = |direction: &str| {
            let (link, direction) = (link.label().into(), direction.into());
            Metrics::global()
                .wire_bytes
                .get_or_create(&WireLabel { link, direction })
                .clone()
        };
        Self {
            inner,
            sent: counter("sent"),
            received: counter("received"),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.received.inc_by((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.sent.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, slices))?;
        self.sent.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
