//! What the server is doing and did lately: for the status page and the log.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ds4_runtime::Timings;
use ds4_telemetry::metrics::{Metrics, ReasonLabel};
use ds4_tokenizer::dsml::Quality;
use serde::Serialize;
use tracing::Span;

use crate::drive::{Drive, Happening};
use crate::error::ApiError;
use crate::turn::Finish;

/// Ended requests that are remembered.
const REMEMBERED: usize = 50;

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Finished(&'static str),
    /// The client left.
    Cancelled,
    /// The client took nothing for too long.
    Stalled,
    Failed(String),
}

/// What is known of one request. Times are in milliseconds since it began; nothing of what was said is kept.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Record {
    pub(crate) id: u64,
    /// Milliseconds since 1970.
    pub(crate) began: u64,
    pub(crate) route: &'static str,
    pub(crate) streamed: bool,
    pub(crate) prompt: usize,
    pub(crate) prefilled: u32,
    pub(crate) cached: u32,
    pub(crate) completion: u32,
    pub(crate) decision: Option<String>,
    pub(crate) first_token: Option<f64>,
    pub(crate) ended: Option<f64>,
    pub(crate) outcome: Option<String>,
    pub(crate) queue: f64,
    pub(crate) prefill: f64,
    pub(crate) handoff_tail: f64,
}

/// The requests that run, and the last ones that ended.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Record>,
    ended: VecDeque<Record>,
}

impl Journal {
    /// Takes note of a new request.
    pub(crate) fn begin(self: &Arc<Self>, route: &'static str, prompt: usize, streamed: bool) -> Entry {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began = u64::try_from(since.as_millis()).unwrap_or_default();
        let record = Record {
            id,
            began,
            route,
            prompt,
            streamed,
            ..Record::default()
        };
        self.lock(|state| state.running.push(record));
        Entry {
            journal: Arc::clone(self),
            id,
            began: Instant::now(),
            noted: Mutex::new(Noted::default()),
        }
    }

    /// Running requests, oldest first, and ended ones, latest first.
    pub(crate) fn records(&self) -> (Vec<Record>, Vec<Record>) {
        self.lock(|state| (state.running.clone(), state.ended.iter().cloned().collect()))
    }

    fn lock<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // Records are plain data: after a panic elsewhere they are still sound.
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Default)]
struct Noted {
    finishes: Vec<&'static str>,
    done: bool,
}

/// A request's line in the journal. Dropped without an end it counts as cancelled.
#[derive(Debug)]
pub(crate) struct Entry {
    journal: Arc<Journal>,
    id: u64,
    began: Instant,
    noted: Mutex<Noted>,
}

impl Entry {
    fn milliseconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64() * 1e3
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        self.journal.lock(|state| {
            if let Some(record) = state.running.iter_mut().find(|record| record.id == self.id) {
                change(record);
            }
        });
    }

    /// Follows what happens.
    pub(crate) fn note(&self, happening: &Happening) {
        let now = self.milliseconds();
        match happening {
            Happening::Prefill(done, _) => {
                self.change(|record| record.prefilled = record.prefilled.max(*done))
            }
            Happening::Decided(decision) => {
                self.change(|record| record.decision = Some(decision.to_string()))
            }
            Happening::Parts(..) => self.change(|record| {
                record.first_token.get_or_insert(now);
                record.completion += 1;
            }),
            Happening::Ended(_, finish, _) => self.noted().finishes.push(word(finish)),
        }
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All answers are there, or one failed.
    pub(crate) fn settle(&self, drive: &Drive<'_>, span: &Span, error: Option<&ApiError>) {
        let finish = self.noted().finishes.last().copied().unwrap_or("none");
        let outcome = error.map_or(Outcome::Finished(finish), |error| {
            Outcome::Failed(error.message.clone())
        });
        self.end(drive, span, outcome);
    }

    pub(crate) fn end(&self, drive: &Drive<'_>, span: &Span, outcome: Outcome) {
        let (usage, quality) = (drive.usage(), drive.quality());
        let tools = match quality {
            Quality::None => "none",
            Quality::Sound => "sound",
            Quality::Repaired => "repaired",
            Quality::Malformed => "malformed",
        };
        if quality != Quality::None {
            let reason = ReasonLabel { reason: tools.into() };
            Metrics::global().tool_calls.get_or_create(&reason).inc();
        }
        let outcome = outcome.word();
        span.record("gen_ai.usage.output_tokens", usage.completion);
        span.record("gen_ai.response.finish_reasons", outcome.as_str());
        span.record("ds4.tool_calls", tools);
        self.change(|record| {
            record.completion = usage.completion;
            record.cached = usage.cached;
            record.times(drive.timings.as_ref());
        });
        if let Some(record) = self.close(outcome) {
            tracing::info!(
                request = record.id,
                route = record.route,
                prompt = record.prompt,
                cached = record.cached,
                completion = record.completion,
                decision = record.decision.as_deref().unwrap_or("none"),
                ttft_ms = record.first_token,
                total_ms = record.ended,
                tools,
                outcome = record.outcome.as_deref().unwrap_or("none"),
                "request"
            );
        }
    }

    /// Moves the record to those that ended.
    fn close(&self, outcome: String) -> Option<Record> {
        if std::mem::replace(&mut self.noted().done, true) {
            return None;
        }
        let now = self.milliseconds();
        self.journal.lock(|state| {
            let at = state.running.iter().position(|record| record.id == self.id)?;
            let mut record = state.running.remove(at);
            record.ended = Some(now);
            record.outcome = Some(outcome);
            state.ended.push_front(record.clone());
            state.ended.truncate(REMEMBERED);
            Some(record)
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close(Outcome::Cancelled.word());
    }
}

impl Record {
    fn times(&mut self, timings: Option<&Timings>) {
        let Some(timings) = timings else { return };
        let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        self.queue = milliseconds(timings.queue);
        self.prefill = milliseconds(timings.prefill);
        self.handoff_tail = milliseconds(timings.handoff_tail);
    }
}

impl Outcome {
    fn word(&self) -> String {
        match self {
            Self::Finished(word) => (*word).to_owned(),
            Self::Cancelled => "cancelled".to_owned(),
            Self::Stalled => "stalled".to_owned(),
            Self::Failed(message) => format!("failed: {message}"),
        }
    }
}

const fn word(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}
