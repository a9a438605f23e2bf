//! A request to the engine and what comes back.

use std::fmt;
use std::time::{Duration, Instant};

use ds4_model::choice::{Logprobs, Shaping};
use ds4_model::sampling::Sampling;
use tokio::sync::mpsc;
use tracing::Span;

use crate::route::HandoffReport;
use crate::{EngineError, Flow};

/// What to generate.
#[derive(Debug)]
pub struct Generate {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What else the request wants of the choice.
    pub shaping: Shaping,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Whose request it is and how urgent: what it shares the machine by.
    pub flow: Flow,
    /// When it is too late for an answer.
    pub deadline: Option<Instant>,
    /// The request's span; the engine's spans nest in it.
    pub parent: Span,
}

/// How the prompt was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// By the stages of the route; their KV was handed over.
    Disaggregated {
        /// Prefill stages.
        stages: u32,
        /// What went wrong before it went well, on another route or with a stage that had restarted.
        retried: Option<String>,
    },
    /// By this process, as the policy says.
    Local {
        /// Why.
        reason: String,
    },
    /// By this process, because the route failed.
    Recomputed {
        /// How it failed.
        reason: String,
    },
}

impl Decision {
    /// `disaggregated`, `local` or `recomputed`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Disaggregated { .. } => "disaggregated",
            Self::Local { .. } => "local",
            Self::Recomputed { .. } => "recomputed",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disaggregated { retried: None, .. } => f.write_str(self.label()),
            Self::Disaggregated {
                retried: Some(reason),
                ..
            } => write!(f, "{}; retried={reason}", self.label()),
            Self::Local { reason } | Self::Recomputed { reason } => {
                write!(f, "{}; reason={reason}", self.label())
            }
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FinishReason {
    /// The model ended its turn.
    Stop,
    /// As many tokens as asked for.
    Length,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Waiting for a free session.
    pub queue: Duration,
    /// Computing the prompt.
    pub prefill: Duration,
    /// From the last computed chunk to the last KV row; zero when nothing was handed over.
    pub handoff_tail: Duration,
    /// From the request to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What the stages handed over, all of them together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handed {
    /// Bytes of rows.
    pub bytes: u64,
    /// From the first frame to the last, of the longest handoff.
    pub duration: Duration,
    /// Of the bytes, those that were sent after a stage had computed its last chunk.
    pub tail_bytes: u64,
    /// From then until everything was sent, on the stage where that took longest.
    pub tail: Duration,
}

impl Handed {
    pub(crate) fn of(handoffs: &[HandoffReport]) -> Self {
        let longest = |of: fn(&HandoffReport) -> Duration| handoffs.iter().map(of).max();
        Self {
            bytes: handoffs.iter().map(|handoff| handoff.bytes).sum(),
            duration: longest(|handoff| handoff.duration).unwrap_or_default(),
            tail_bytes: handoffs.iter().map(|handoff| handoff.tail_bytes).sum(),
            tail: longest(|handoff| handoff.tail).unwrap_or_default(),
        }
    }
}

/// What the draft head guessed while an answer ran alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Guesses {
    /// Tokens guessed, one in a pass.
    pub tried: u32,
    /// Of these, those that saved a pass.
    pub right: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
    /// Prompt tokens that were not computed again.
    pub cached_tokens: u32,
    /// What the stages handed over.
    pub handed: Handed,
    /// What the draft head guessed; none without one.
    pub guesses: Guesses,
}

/// What happens to a request, in order.
#[derive(Debug)]
pub enum Event {
    /// Prompt tokens computed so far.
    Prefill {
        /// Done.
        done: u32,
        /// Of these.
        total: u32,
    },
    /// Prompt tokens that were not computed again; comes before the decision, so that answers that end early know it too.
    Cached(u32),
    /// How the prompt was computed; comes before the first token.
    Decided(Decision),
    /// How likely the next token was; comes before it, when asked for.
    Logprobs(Logprobs),
    /// One token.
    Token(u32),
    /// The last event of a request that succeeded.
    Finished(Finished),
    /// The last event of one that did not.
    Failed(EngineError),
}

/// The events of one request. Dropping it cancels the work everywhere.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
}

impl Generation {
    pub(crate) const fn new(events: mpsc::Receiver<Event>) -> Self {
        Self { events }
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
