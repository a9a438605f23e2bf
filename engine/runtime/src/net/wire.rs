//! Connections as they go out: to the next address, counted byte by byte where they leave the process.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ds4_telemetry::metrics::{Counter, Metrics, WireLabel};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read of a connection in one go. Whoever waits for them goes next: he finds them in his core's own cache, and they do not pile up
/// beyond this, however large HTTP/2's windows are (`cargo xtask bench handoff`, the receiver's memory).
const TURN: usize = 256 << 10;

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

/// A connection whose bytes are counted, and which is read in turns with those who take them.
pub(crate) struct Counted<T> {
    inner: T,
    /// Bytes read in this turn.
    turn: usize,
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
            turn: 0,
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
        if self.turn >= TURN {
            self.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.turn = if polled.is_ready() { self.turn + read } else { 0 };
        self.received.inc_by(read as u64);
        polled
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A peer that has always more cannot keep this thread from those who take it, and no byte is lost for it.
    #[tokio::test]
    async fn a_connection_that_is_never_empty_is_read_in_turns() {
        let sent: Vec<u8> = (0..4 * TURN).map(|i| (i % 251) as u8).collect();
        let mut connection = Counted::new(&sent[..], Link::Kv);
        let (mut read, mut turns) = (Vec::new(), 0);
        {
            let mut reading = Box::pin(async {
                let mut piece = vec![0; TURN / 4];
                loop {
                    match connection.read(&mut piece).await.expect("it does not fail") {
                        0 => return,
                        more => read.extend_from_slice(&piece[..more]),
                    }
                }
            });
            while futures::poll!(&mut reading).is_pending() {
                turns += 1;
            }
        }
        assert!(read == sent);
        assert_eq!(turns, 4);
    }
}
