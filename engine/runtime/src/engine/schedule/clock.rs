//! Weighted fair queueing between clients.

use std::collections::HashMap;

/// How much of the machine a request gets beside others of its client and of other clients. A share, not an order: what is less urgent goes on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Priority {
    /// An eighth of the usual.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Eight times the usual.
    High,
}

impl Priority {
    const fn weight(self) -> u64 {
        match self {
            Self::Low => 1,
            Self::Normal => 8,
            Self::High => 64,
        }
    }
}

/// Requests that share one turn: those of one client with one priority.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flow {
    /// Whose requests; 0 when nobody said.
    pub client: u64,
    /// How urgent.
    pub priority: Priority,
}

/// Parts of a token, so that heavy weights divide evenly.
const SCALE: u64 = 64;

/// Start-time fair queueing (Goyal, Vin, Chen 1996): the flow with the earliest time goes next, and its time moves on by what it got over its
/// weight. A flow that was away does not get back what it did not ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    now: u64,
    times: HashMap<Flow, u64>,
}

impl Clock {
    /// The flow with the smallest goes next.
    pub(crate) fn time(&self, flow: Flow) -> u64 {
        self.times.get(&flow).copied().unwrap_or(0).max(self.now)
    }

    /// `flow` gets `tokens` of work now.
    pub(crate) fn charge(&mut self, flow: Flow, tokens: usize) {
        self.now = self.time(flow);
        let next = self.now + tokens as u64 * SCALE / flow.priority.weight();
        self.times.insert(flow, next);
        // A time that has passed says nothing more.
        let now = self.now;
        self.times.retain(|_, time| *time > now);
    }
}
