//! What a stage costs on a machine.

use crate::{Parts, Span};

/// Share of a machine's memory that a proposal leaves free: hidden states of the chunks in flight, staging and the process itself.
const HEADROOM: u64 = 16;

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes that it has.
    pub memory: u64,
    /// Prompt tokens per second that it would compute through the whole model, as measured; `None` when nobody measured.
    pub rate: Option<f64>,
    /// Bytes per second of its link; `None` when nobody measured.
    pub link: Option<f64>,
}

impl Machine {
    /// A machine of which only the memory is known.
    #[must_use]
    pub const fn of(memory: u64) -> Self {
        Self {
            memory,
            rate: None,
            link: None,
        }
    }

    pub(crate) const fn usable(&self) -> u64 {
        self.memory - self.memory / HEADROOM
    }
}

/// Memory of which `bytes` can be used.
pub(crate) const fn with_headroom(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(HEADROOM - 1)
}

/// Seconds per prompt token; with unmeasured machines all rates count as one token per second and links as free.
pub(crate) struct Pace<'a> {
    parts: &'a Parts,
    measured: bool,
    all: f64,
}

impl<'a> Pace<'a> {
    #[allow(clippy::cast_precision_loss)] // bytes
    pub(crate) fn new(parts: &'a Parts, machines: &[Machine]) -> Self {
        let measured = machines
            .iter()
            .all(|machine| machine.rate.is_some_and(|rate| rate > 0.0));
        Self {
            parts,
            measured,
            all: parts.work(parts.full()).max(1) as f64,
        }
    }

    #[allow(clippy::cast_precision_loss)] // bytes
    pub(crate) fn seconds(&self, machine: &Machine, span: Span) -> f64 {
        let rate = machine.rate.filter(|_| self.measured).unwrap_or(1.0);
        let compute = self.parts.work(span) as f64 / self.all / rate;
        match machine.link.filter(|link| self.measured && *link > 0.0) {
            Some(link) => compute.max(self.moved(span) / link),
            None => compute,
        }
    }

    /// Bytes per token over the machine's link, in its busier direction: a stage sends activations and its KV rows; the output stage takes the
    /// last activations and the KV of all layers before its own.
    #[allow(clippy::cast_precision_loss)] // bytes
    fn moved(&self, span: Span) -> f64 {
        let kv = if span.head {
            self.parts.kv_per_token(0..span.first)
        } else {
            self.parts.kv_per_token(span.first..span.last + 1)
        };
        let alone = span.head && span.first == 0;
        if alone {
            0.0
        } else {
            self.parts.activation as f64 + kv
        }
    }
}
