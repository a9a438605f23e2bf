//! How the engine works, and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

use ds4_proto::{FRAME_BYTES, MAX_FRAME_BYTES};

use crate::generate::Decision;
use crate::net::Tls;
use crate::route::{RouteOptions, RouteState};
use crate::store::SessionStore;

/// Twice as long is what readers hardly see; what is left below it is for measurements that were off.
const STRETCH: f64 = 1.7;

/// When prompts go over the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Prompts with at least `min_prompt_tokens` new tokens, when that is faster by what was measured lately.
    #[default]
    Adaptive,
    /// All.
    Always,
    /// None.
    Never,
}

/// What happens when the route fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFailure {
    /// This process computes the prompt; the decision says so.
    #[default]
    RecomputeLocally,
    /// The request fails.
    Fail,
}

/// How the engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Tokens in a chunk.
    pub prefill_chunk: usize,
    /// Chunks in flight between two hops.
    pub window: usize,
    /// Fewest new tokens that go over the route under [`Policy::Adaptive`].
    pub min_prompt_tokens: usize,
    /// Longest silence of the route.
    pub handoff_timeout: Duration,
    /// What happens when the route fails.
    pub on_failure: OnFailure,
    /// Tokens of prompt and answer together.
    pub max_tokens: u64,
    /// Requests that may wait.
    pub queue: usize,
    /// When prompts go over the route.
    pub policy: Policy,
    /// Tokens that end a turn.
    pub eos: Vec<u32>,
    /// Requests that are computed at once.
    pub sessions: usize,
    /// Bytes of KV of running requests and of those kept for later turns together.
    pub kv_budget: u64,
    /// Most of it for sessions kept for later turns.
    pub kept_budget: u64,
    /// Longest wait for a session.
    pub queue_timeout: Duration,
    /// How many times as long as alone a token of a running answer may take for the sake of prompts.
    pub stretch: f64,
    /// How long after its last turn a session is kept on the stages as well.
    pub stage_hold: Duration,
    /// Connections on which a stage's KV comes, besides the one for activations.
    pub streams: u32,
    /// Most bytes of rows in one KV frame, up to 4 MiB.
    pub frame_bytes: usize,
    /// Certificates of this and the other pods; none: everything is in the clear.
    pub tls: Option<Arc<Tls>>,
    /// Where sessions outlive memory and the process.
    pub store: Option<Arc<SessionStore>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            window: 4,
            min_prompt_tokens: 512,
            handoff_timeout: Duration::from_secs(30),
            on_failure: OnFailure::RecomputeLocally,
            max_tokens: 65_536,
            queue: 32,
            policy: Policy::Adaptive,
            eos: Vec::new(),
            sessions: 4,
            kv_budget: 4 << 30,
            kept_budget: u64::MAX,
            queue_timeout: Duration::from_secs(60),
            stretch: STRETCH,
            stage_hold: Duration::from_secs(60),
            streams: 2,
            frame_bytes: FRAME_BYTES,
            tls: None,
            store: None,
        }
    }
}

impl EngineOptions {
    pub(super) fn route(&self) -> RouteOptions {
        RouteOptions {
            chunk_tokens: self.prefill_chunk,
            window: self.window,
            timeout: self.handoff_timeout,
            max_tokens: self.max_tokens,
            streams: self.streams,
            frame_bytes: self.frame_bytes.clamp(1, MAX_FRAME_BYTES),
        }
    }
}

/// What the engine is doing.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Whether the route can be used.
    pub route: RouteState,
    /// Whether it ever could.
    pub route_was_complete: bool,
    /// Requests waiting or running.
    pub requests: usize,
    /// Sessions kept for later turns.
    pub cached_sessions: usize,
    /// No new requests are taken.
    pub shutting_down: bool,
    /// What the device said when it broke; the process is about to end then.
    pub broken: Option<String>,
}

/// What a run over all positions took.
#[derive(Clone, Debug)]
pub struct LogitsReport {
    /// How the prompt was computed.
    pub decision: Decision,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// KV bytes that were handed over.
    pub handoff_bytes: u64,
}
