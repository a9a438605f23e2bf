//! How the engine works, and what it says of itself.

use std::time::Duration;

use crate::generate::Decision;
use crate::route::RouteState;

/// When prompts go over the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Prompts of at least `min_prompt_tokens`.
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
    /// Shortest prompt that goes over the route under [`Policy::Adaptive`].
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
    /// No new requests are taken.
    pub shutting_down: bool,
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
