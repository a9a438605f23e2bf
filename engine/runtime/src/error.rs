//! What can go wrong between pods, and what a request is told.

use std::time::Duration;

use ds4_model::{KvError, ModelError};
use thiserror::Error;

use crate::Incompatible;

/// Why a route cannot be used, or a prefill over it failed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// A stage cannot be reached.
    #[error("stage {endpoint}: not reachable: {reason}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// What the transport says.
        reason: String,
    },
    /// The process that was described is gone; another answers in its place.
    #[error("stage {endpoint}: restarted: {reason}")]
    Restarted {
        /// Which stage.
        endpoint: String,
        /// The two incarnations.
        reason: String,
    },
    /// A stage is another model, build or layout.
    #[error("stage {endpoint}: {source}")]
    Incompatible {
        /// Which stage.
        endpoint: String,
        /// What differs.
        source: Incompatible,
    },
    /// The stages do not join up.
    #[error("route: expected a stage that starts at layer {expected}, found {found}")]
    Layers {
        /// First layer that nobody prefills.
        expected: usize,
        /// What comes instead.
        found: String,
    },
    /// A stage has no room for one more session.
    #[error("stage {endpoint}: {reason}")]
    Full {
        /// Which stage.
        endpoint: String,
        /// Of what there is too little.
        reason: String,
        /// When it may go better.
        retry_after: Duration,
    },
    /// A stage refused or broke off.
    #[error("stage {endpoint}: {reason}")]
    Refused {
        /// Which stage.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("stage {endpoint}: {what}: nothing came within {timeout:?}")]
    Silent {
        /// Which stage.
        endpoint: String,
        /// What was awaited.
        what: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// A frame or commit is not what it must be.
    #[error("stage {endpoint}: {field}: expected {expected}, found {found}")]
    Frame {
        /// Which stage.
        endpoint: String,
        /// What differs.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A shard is refused.
    #[error("stage {endpoint}: {source}")]
    Kv {
        /// Which stage.
        endpoint: String,
        /// What is wrong with it.
        source: KvError,
    },
    /// The local part failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The shards do not join up.
    #[error(transparent)]
    Assemble(#[from] KvError),
    /// The client went away.
    #[error("cancelled")]
    Cancelled,
}

impl RouteError {
    /// The stage that it is about, when it is about one.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Unreachable { endpoint, .. }
            | Self::Restarted { endpoint, .. }
            | Self::Incompatible { endpoint, .. }
            | Self::Full { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::Silent { endpoint, .. }
            | Self::Frame { endpoint, .. }
            | Self::Kv { endpoint, .. } => Some(endpoint),
            Self::Layers { .. } | Self::Model(_) | Self::Assemble(_) | Self::Cancelled => None,
        }
    }

    /// A fixed word for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Restarted { .. } => "restarted",
            Self::Incompatible { .. } => "incompatible",
            Self::Layers { .. } => "layers",
            Self::Full { .. } => "full",
            Self::Refused { .. } => "refused",
            Self::Silent { .. } => "timeout",
            Self::Frame { .. } => "frame",
            Self::Kv { .. } | Self::Assemble(_) => "kv",
            Self::Model(_) => "model",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Too many requests wait.
    #[error("the queue is full: {waiting} requests wait; try again in {retry_after:?}")]
    Busy {
        /// Requests waiting.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// No seat came free in time.
    #[error("no session came free within {waited:?}; {waiting} requests wait; try again in {retry_after:?}")]
    Waited {
        /// How long this one waited.
        waited: Duration,
        /// Requests that still wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The time that the request gave is up.
    #[error("the deadline of the request has passed")]
    Deadline,
    /// One session that would hold more KV than all may.
    #[error(
        "kv budget: expected at most {most} bytes, found {found} for the {tokens} tokens of prompt and answer; ask for fewer"
    )]
    Budget {
        /// The budget.
        most: u64,
        /// What the request may come to hold.
        found: u64,
        /// Its tokens.
        tokens: u64,
    },
    /// The process ends.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The device is beyond repair, and the process ends.
    #[error("the device failed, and the server restarts: {0}")]
    Broken(String),
    /// More tokens than the context holds.
    #[error("context: expected at most {most} tokens, found {prompt} in the prompt and {wanted} to generate")]
    Context {
        /// The limit.
        most: u64,
        /// Tokens in the prompt.
        prompt: u64,
        /// Tokens asked for.
        wanted: u64,
    },
    /// Nothing to compute.
    #[error("prompt: expected at least one token, found none")]
    EmptyPrompt,
    /// Prefill over the route failed, and the policy does not permit recomputing.
    #[error("prefill over the route failed: {0}")]
    Route(#[from] RouteError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A task ended unexpectedly.
    #[error("internal: {0}")]
    Internal(String),
}

/// Why a stage ended though nobody asked it to.
#[derive(Debug, Error)]
pub enum StageError {
    /// The connections failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// The device is beyond repair; a new process is needed.
    #[error("the device failed: {0}")]
    Broken(String),
}
