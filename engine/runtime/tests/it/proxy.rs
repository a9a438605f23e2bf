//! A TCP proxy that does one thing wrong, once, at a chosen byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Served;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The connection is reset.
    Reset,
    /// It ends in the middle of what was being sent.
    Truncate,
    /// Nothing passes any more, and nobody says so.
    Stall,
    /// One bit is another.
    Flip,
    /// This connection is late; the others are not, so streams overtake each other.
    Delay,
    /// From here on a trickle.
    Slow,
    /// Bytes come one by one.
    Shred,
    /// A piece comes twice.
    Repeat,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Reset,
        Self::Truncate,
        Self::Stall,
        Self::Flip,
        Self::Delay,
        Self::Slow,
        Self::Shred,
        Self::Repeat,
    ];
}

/// Which way the bytes go that are meddled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toward {
    Stage,
    Caller,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub toward: Toward,
    /// Bytes of that way, of all connections together, that pass before.
    pub after: u64,
}

struct State {
    fault: Option<Fault>,
    passed: AtomicU64,
    struck: AtomicBool,
}

/// A proxy before a stage.
pub struct Proxy {
    pub served: Served,
    state: Arc<State>,
}

impl Proxy {
    pub fn before(stage: &str, fault: Option<Fault>) -> Self {
        let state = Arc::new(State {
            fault,
            passed: AtomicU64::new(0),
            struck: AtomicBool::new(false),
        });
        let (shared, stage) = (Arc::clone(&state), stage.to_owned());
        let served = Served::start("127.0.0.1:0", move |listener, _| serve(listener, stage, shared));
        Self { served, state }
    }

    /// Whether the fault's byte was reached.
    pub fn struck(&self) -> bool {
        self.state.struck.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, stage: String, state: Arc<State>) {
    while let Ok((caller, _)) = listener.accept().await {
        let Ok(stage) = TcpStream::connect(&stage).await else {
            continue;
        };
        let _ = (caller.set_nodelay(true), stage.set_nodelay(true));
        let ((from_caller, to_caller), (from_stage, to_stage)) = (caller.into_split(), stage.into_split());
        tokio::spawn(pump(from_caller, to_stage, Toward::Stage, Arc::clone(&state)));
        tokio::spawn(pump(from_stage, to_caller, Toward::Caller, Arc::clone(&state)));
    }
}

/// Passes bytes on until either end is gone.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, toward: Toward, state: Arc<State>) {
    let mut buffer = vec![0; 16 << 10];
    let mut slow = false;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = &mut buffer[..read];
        match state.strikes(toward, bytes.len()) {
            None => {}
            Some((Kind::Slow, _)) => slow = true,
            Some((kind, at)) => {
                if !wrong(kind, at, bytes, &mut to).await {
                    return;
                }
                continue;
            }
        }
        let piece = if slow { 2 << 10 } else { read };
        for piece in bytes.chunks(piece) {
            if slow {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
    }
}

/// Passes `bytes` on in a wrong way; false when the connection is over.
async fn wrong(kind: Kind, at: usize, bytes: &mut [u8], to: &mut OwnedWriteHalf) -> bool {
    match kind {
        Kind::Reset | Kind::Truncate => {
            let _ = to.write_all(&bytes[..at]).await;
            if kind == Kind::Reset {
                let _ = to.as_ref().set_zero_linger();
            }
            return false;
        }
        Kind::Stall => std::future::pending().await,
        Kind::Flip => bytes[at] ^= 1 << (at % 8),
        Kind::Delay => tokio::time::sleep(Duration::from_millis(200)).await,
        Kind::Repeat => drop(to.write_all(bytes).await),
        Kind::Shred => {
            for byte in bytes.iter().take(256) {
                if to.write_all(&[*byte]).await.is_err() {
                    return false;
                }
            }
            return to.write_all(&bytes[bytes.len().min(256)..]).await.is_ok();
        }
        Kind::Slow => {}
    }
    to.write_all(bytes).await.is_ok()
}

impl State {
    /// The fault, and where in these bytes it strikes.
    fn strikes(&self, toward: Toward, bytes: usize) -> Option<(Kind, usize)> {
        let fault = self.fault.filter(|fault| fault.toward == toward)?;
        let before = self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        let at = usize::try_from(fault.after.checked_sub(before)?).ok()?;
        (at < bytes && !self.struck.swap(true, Ordering::Relaxed)).then_some((fault.kind, at))
    }
}
