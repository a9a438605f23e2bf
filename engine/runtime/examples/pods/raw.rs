//! Bytes over plain TCP, or over TLS with the certificates of both pods: what the same two processes could do at best.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_runtime::Tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As large as a KV frame.
const PIECE: usize = 1 << 20;

async fn send(mut to: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut left) = to.read_u64().await else { return };
    let piece = vec![0x6c; PIECE];
    while left > 0 {
        let now = left.min(PIECE as u64);
        to.write_all(&piece[..now as usize]).await.unwrap();
        left -= now;
    }
    to.flush().await.unwrap();
    // The reader closes.
    let _ = to.read_u64().await;
}

/// Sends as many bytes as each caller asks for.
pub async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => send(stream).await,
                Some(tls) => send(tls.accept(stream).await.unwrap()).await,
            }
        });
    }
}

async fn read(mut from: impl AsyncRead + AsyncWrite + Unpin, bytes: u64) {
    from.write_u64(bytes).await.unwrap();
    from.flush().await.unwrap();
    let (mut buffer, mut left) = (vec![0; PIECE], bytes);
    while left > 0 {
        let read = from.read(&mut buffer).await.unwrap() as u64;
        assert!(read > 0, "the sender left");
        left -= read;
    }
}

/// How long `bytes` bytes take over `streams` connections.
pub async fn take(address: &str, tls: Option<&Arc<Tls>>, bytes: u64, streams: u64) -> Duration {
    let mut connections = Vec::new();
    for _ in 0..streams {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        connections.push(stream);
    }
    let started = Instant::now();
    let reads = connections.into_iter().map(|stream| {
        let tls = tls.cloned();
        tokio::spawn(async move {
            match tls {
                None => read(stream, bytes / streams).await,
                Some(tls) => read(tls.connect("127.0.0.1", stream).await.unwrap(), bytes / streams).await,
            }
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    started.elapsed()
}
