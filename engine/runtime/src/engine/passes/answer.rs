//! An answer that runs: its session, how its tokens are chosen, and who reads them.

use std::time::Instant;

use ds4_model::choice::{Choice, Chooser};
use ds4_model::{Drafter, Hidden, Kv, ModelError, ModelSlice, Part};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::super::held::Held;
use super::Passes;
use crate::EngineError;
use crate::compute::Compute;
use crate::generate::{Event, FinishReason, Guesses};

/// Events of one token: what is told of it, and itself.
const EVENTS: usize = 2;

/// How it ended.
pub(crate) struct End {
    /// The session, with all tokens but the last one; none when it is lost.
    pub(crate) held: Option<Held>,
    pub(crate) result: Result<FinishReason, EngineError>,
    /// Tokens told.
    pub(crate) count: u32,
    /// When the first one was chosen.
    pub(crate) first: Option<Instant>,
    pub(crate) guesses: Guesses,
}

pub(crate) type Ended = oneshot::Receiver<End>;

/// When it ends.
#[derive(Clone, Debug)]
pub(crate) struct Until {
    pub(crate) tokens: u32,
    /// Tokens that end it; none when it goes on after them.
    pub(crate) eos: Vec<u32>,
    pub(crate) deadline: Option<Instant>,
}

/// An answer that runs.
pub(crate) struct Answer {
    held: Held,
    /// Streams of the session's last token. Before them those of earlier tokens that the draft head is still to see, where there is one.
    rows: Vec<f32>,
    width: usize,
    /// What the draft head has seen of the session so far.
    seen: Option<Kv>,
    chooser: Chooser,
    /// The token that the rows do not hold yet.
    chosen: Option<u32>,
    /// What was chosen just now and is not told yet.
    fresh: Option<Result<Choice, EngineError>>,
    until: Until,
    count: u32,
    guesses: Guesses,
    first: Option<Instant>,
    events: mpsc::Sender<Event>,
    done: oneshot::Sender<End>,
    /// Where it runs, and where it waits meanwhile when its client is slow.
    home: Compute<Passes>,
    runtime: Handle,
}

impl Answer {
    /// An answer of `slice` after `held`, whose last tokens have the streams `hidden`; the end comes by the second value. Needs a Tokio runtime.
    pub(crate) fn new(
        slice: &dyn ModelSlice,
        held: Held,
        hidden: &Hidden,
        chooser: Chooser,
        until: Until,
        events: mpsc::Sender<Event>,
        home: &Compute<Passes>,
    ) -> (Self, Ended) {
        let (done, ended) = oneshot::channel();
        let wanted = slice.drafter().map_or(1, Drafter::window);
        let first = hidden.tokens() - wanted.min(hidden.tokens()).min(held.tokens.len());
        let answer = Self {
            rows: hidden.as_slice()[first * hidden.width()..].to_vec(),
            width: hidden.width(),
            seen: None,
            held,
            chooser,
            chosen: None,
            fresh: None,
            until,
            count: 0,
            guesses: Guesses::default(),
            first: None,
            events,
            done,
            home: home.clone(),
            runtime: Handle::current(),
        };
        (answer, ended)
    }

    /// Itself when it takes part in the next pass; otherwise it has ended, or waits elsewhere until its client has taken something.
    pub(super) fn ready(self, now: Instant) -> Option<Self> {
        if self.events.is_closed() || self.count >= self.until.tokens {
            // Whoever has left needs no reason.
            self.end(Ok(FinishReason::Length));
            return None;
        }
        if self.until.deadline.is_some_and(|deadline| deadline <= now) {
            self.end(Err(EngineError::Deadline));
            return None;
        }
        if self.events.capacity() >= EVENTS {
            return Some(self);
        }
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let (events, home) = (self.events.clone(), self.home.clone());
            // A closed channel lets it go on too: then it ends.
            drop(events.reserve_many(EVENTS).await);
            home.join(self);
        });
        None
    }

    pub(super) const fn chosen(&self) -> Option<&u32> {
        self.chosen.as_ref()
    }

    pub(super) fn part(&mut self) -> Option<Part<'_>> {
        let token = self.chosen.as_ref()?;
        Some(Part {
            tokens: std::slice::from_ref(token),
            kv: self.held.kv.kv_mut(),
        })
    }

    /// The chosen token is computed, in a pass without a guess; `row` are its streams.
    pub(super) fn advance(&mut self, row: &[f32]) {
        self.rows.clear();
        self.seen = None;
        self.computed(row);
    }

    /// The chosen token is computed; `row` are its streams.
    pub(super) fn computed(&mut self, row: &[f32]) {
        self.held.tokens.extend(self.chosen.take());
        self.rows.extend_from_slice(row);
    }

    /// Streams of the session's last token.
    pub(super) fn last(&self) -> &[f32] {
        &self.rows[self.rows.len().saturating_sub(self.width)..]
    }

    pub(super) const fn kv_mut(&mut self) -> &mut Kv {
        self.held.kv.kv_mut()
    }

    /// Whether the next pass may choose two tokens.
    pub(super) fn may_guess(&self) -> bool {
        let room = self.events.capacity() >= 2 * EVENTS;
        room && self.chosen.is_some() && self.until.tokens - self.count >= 2
    }

    /// What the draft head expects after `token`, which was chosen and is not computed yet.
    pub(super) fn guess(&mut self, drafter: &dyn Drafter, token: u32) -> Result<u32, ModelError> {
        let rows = std::mem::take(&mut self.rows);
        let earlier = (rows.len() / self.width).saturating_sub(1);
        let mut tokens = self.held.tokens[self.held.tokens.len() - earlier..].to_vec();
        tokens.push(token);
        let expected = tokens.len() * self.width;
        let hidden = Hidden::from_vec(self.width, rows).ok_or(ModelError::Hidden {
            tokens: tokens.len(),
            width: self.width,
            expected,
            found: 0,
        })?;
        let seen = self.seen.get_or_insert_with(|| drafter.empty());
        drafter.draft(seen, &tokens, &hidden)
    }

    /// Whether `token` is what was just chosen, and more is to come after it.
    pub(super) fn goes_on_with(&self, token: u32) -> bool {
        let chosen = matches!(&self.fresh, Some(Ok(choice)) if choice.token == token);
        chosen && !self.until.eos.contains(&token) && self.until.tokens - self.count >= 2
    }

    pub(super) const fn count_guess(&mut self, right: bool) {
        self.guesses.tried += 1;
        self.guesses.right += right as u32;
    }

    pub(super) fn choose(&mut self, logits: &[f32]) {
        let choice = self.chooser.choose(logits);
        self.fresh = Some(choice.map_err(|error| EngineError::Internal(error.to_string())));
    }

    /// Tells the token that was chosen; itself while it goes on.
    pub(super) fn told(mut self) -> Option<Self> {
        let Choice { token, logprobs } = match self.fresh.take()? {
            Ok(choice) => choice,
            Err(error) => {
                self.end(Err(error));
                return None;
            }
        };
        self.chosen = Some(token);
        self.first.get_or_insert_with(Instant::now);
        if self.until.eos.contains(&token) {
            self.end(Ok(FinishReason::Stop));
            return None;
        }
        self.count += 1;
        // There is room, as `ready` saw. A client that left is noticed before the next pass.
        let told = logprobs
            .map(Event::Logprobs)
            .into_iter()
            .chain([Event::Token(token)]);
        told.for_each(|event| drop(self.events.try_send(event)));
        if self.count >= self.until.tokens {
            self.end(Ok(FinishReason::Length));
            return None;
        }
        Some(self)
    }

    /// The model failed; the session may stand anywhere.
    pub(super) fn fail(self, error: &dyn std::error::Error) {
        let end = End {
            held: None,
            result: Err(EngineError::Internal(error.to_string())),
            count: self.count,
            first: self.first,
            guesses: self.guesses,
        };
        let _ = self.done.send(end);
    }

    fn end(self, result: Result<FinishReason, EngineError>) {
        let end = End {
            held: Some(self.held),
            result,
            count: self.count,
            first: self.first,
            guesses: self.guesses,
        };
        // Somebody waits for every answer, unless the process ends.
        let _ = self.done.send(end);
    }
}
