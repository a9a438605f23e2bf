//! A network in memory: nodes by name, connections that are late, and what goes wrong with them.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::random::Random;
use crate::net::Io;

/// What a connection holds on its way.
const ON_THE_WAY: usize = 16 << 10;

/// What goes wrong with one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// It ends in the middle of what was being sent.
    Cut,
    /// Nothing passes any more, and nobody says so.
    Stall,
    /// One bit is another.
    Flip,
    /// It is late from here on; others are not, so streams overtake each other.
    Late,
    /// From here on a trickle.
    Slow,
    /// A piece comes twice.
    Repeat,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Cut,
        Self::Stall,
        Self::Flip,
        Self::Late,
        Self::Slow,
        Self::Repeat,
    ];
}

/// One of them, at a byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Of the connections to which node: its place in the order of names.
    pub(crate) node: u64,
    /// Bytes toward the node rather than from it.
    pub(crate) toward: bool,
    /// Bytes of that way, of all its connections together, that pass before.
    pub(crate) after: u64,
}

/// A process as the network sees it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    name: String,
    alive: CancellationToken,
    frozen: watch::Sender<bool>,
}

impl Node {
    /// Everything that it has open breaks, and it opens nothing more.
    pub(crate) fn kill(&self) {
        self.alive.cancel();
    }

    /// Nothing passes from or to it until it thaws; what is sent waits.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender is held by `self`.
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }
}

struct State {
    random: Random,
    listening: BTreeMap<String, (Node, mpsc::UnboundedSender<Result<Io>>)>,
    /// Listeners of the dead: cut off, they go on all the same, and what they hold must go by itself.
    retired: Vec<mpsc::UnboundedSender<Result<Io>>>,
    /// Bytes that went to a node and came from it, by the order of names.
    passed: BTreeMap<(u64, bool), u64>,
    faults: Vec<Fault>,
    struck: Vec<Fault>,
}

/// The network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

/// The network as one node uses it.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    network: Network,
    from: Node,
}

impl Network {
    pub(crate) fn new(random: Random, faults: Vec<Fault>) -> Self {
        Self(Arc::new(Mutex::new(State {
            random,
            listening: BTreeMap::new(),
            retired: Vec::new(),
            passed: BTreeMap::new(),
            faults,
            struck: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node that connects to others.
    pub(crate) fn node(&self, name: &str) -> (Node, Port) {
        let node = Node {
            name: name.to_owned(),
            alive: CancellationToken::new(),
            frozen: watch::Sender::new(false),
        };
        let port = Port {
            network: self.clone(),
            from: node.clone(),
        };
        (node, port)
    }

    /// From now on `node` takes connections, in place of an earlier one of its name.
    pub(crate) fn listen(&self, node: &Node) -> mpsc::UnboundedReceiver<Result<Io>> {
        let (accepted, connections) = mpsc::unbounded_channel();
        let mut state = self.state();
        let old = state
            .listening
            .insert(node.name.clone(), (node.clone(), accepted));
        state.retired.extend(old.map(|(_, accepted)| accepted));
        connections
    }

    /// Faults that came about.
    pub(crate) fn struck(&self) -> Vec<Fault> {
        self.state().struck.clone()
    }
}

impl Port {
    pub(crate) async fn connect(&self, uri: &Uri) -> Result<DuplexStream> {
        let name = uri
            .authority()
            .map_or("", http::uri::Authority::as_str)
            .to_owned();
        let (to, accepted, latency) = {
            let mut state = self.network.state();
            let latency = state.random.millis(3);
            let (node, accepted) = state
                .listening
                .get(&name)
                .filter(|(node, _)| !node.alive.is_cancelled())
                .ok_or(ErrorKind::ConnectionRefused)?;
            (node.clone(), accepted.clone(), latency)
        };
        tokio::time::sleep(latency).await;
        self.from.thawed().await;
        to.thawed().await;
        if self.from.alive.is_cancelled() {
            return Err(Error::other("the node is dead"));
        }
        let ((here, ours), (there, theirs)) = (duplex(ON_THE_WAY), duplex(ON_THE_WAY));
        accepted
            .send(Ok(Io::Simulated(there)))
            .map_err(|_| ErrorKind::ConnectionRefused)?;
        self.carry(ours, theirs, &to, latency);
        Ok(here)
    }

    /// Carries bytes both ways while both nodes live.
    fn carry(&self, ours: DuplexStream, theirs: DuplexStream, to: &Node, latency: Duration) {
        let ((from_us, to_us), (from_them, to_them)) = (split(ours), split(theirs));
        let way = |toward| Pump {
            network: self.network.clone(),
            ends: [self.from.clone(), to.clone()],
            node: self.network.place(&to.name),
            toward,
            latency,
        };
        let (forth, back) = (way(true), way(false));
        let (alive, peer) = (self.from.alive.clone(), to.alive.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = alive.cancelled() => {}
                () = peer.cancelled() => {}
                // A connection that breaks one way is broken.
                () = forth.run(from_us, to_them) => {}
                () = back.run(from_them, to_us) => {}
            }
        });
    }
}

impl Network {
    fn place(&self, name: &str) -> u64 {
        let state = self.state();
        let place = state.listening.keys().position(|known| known == name);
        place.unwrap_or(0) as u64
    }

    /// The fault that strikes in the next `bytes` bytes, and where in them.
    fn strikes(&self, node: u64, toward: bool, bytes: usize) -> Option<(Kind, usize)> {
        let mut state = self.state();
        let passed = state.passed.entry((node, toward)).or_default();
        let before = *passed;
        *passed += bytes as u64;
        let at = state.faults.iter().position(|fault| {
            (fault.node, fault.toward) == (node, toward)
                && (before..before + bytes as u64).contains(&fault.after)
        })?;
        let fault = state.faults.swap_remove(at);
        state.struck.push(fault);
        Some((fault.kind, usize::try_from(fault.after - before).unwrap_or(0)))
    }

    fn jitter(&self) -> Duration {
        self.state().random.millis(2)
    }
}

/// One way of one connection.
struct Pump {
    network: Network,
    ends: [Node; 2],
    node: u64,
    toward: bool,
    latency: Duration,
}

impl Pump {
    async fn run(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut buffer = vec![0; ON_THE_WAY];
        let (mut latency, mut slow) = (self.latency, false);
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            tokio::time::sleep(latency + self.network.jitter()).await;
            for end in &self.ends {
                end.thawed().await;
            }
            let mut bytes = buffer[..read].to_vec();
            match self.network.strikes(self.node, self.toward, read) {
                None => {}
                Some((Kind::Cut, at)) => return drop(to.write_all(&bytes[..at]).await),
                Some((Kind::Stall, _)) => std::future::pending().await,
                Some((Kind::Flip, at)) => bytes[at] ^= 1 << (at % 8),
                Some((Kind::Late, at)) => latency += Duration::from_millis(at as u64 % 100),
                Some((Kind::Slow, _)) => slow = true,
                Some((Kind::Repeat, _)) => bytes.extend_from_within(..),
            }
            let piece = if slow { 512 } else { bytes.len() };
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
}
