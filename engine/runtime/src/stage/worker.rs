//! One session's work on a stage: compute a chunk, send it on, hand over its KV.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ds4_gguf::LayerSpan;
use ds4_model::{Kv, ModelSlice};
use ds4_proto::v1::ActivationFrame;
use ds4_telemetry::propagation;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Span;

use super::handoff::{Frames, Handoff};
use super::onward::Onward;
use super::refusal::{refused, uncomputed};
use super::session::{Sessions, Terms};
use crate::chunk::Chunk;
use crate::compute::Compute;
use crate::engine::{Costs, Kind, PIECE, Piece};
use crate::frames::{Work, activation_frames};
use crate::host::now;
use crate::net::Dialer;

/// What a stage's sessions share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) slice: Arc<dyn ModelSlice>,
    pub(crate) compute: Compute,
    pub(crate) dialer: Dialer,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) costs: Arc<Mutex<Costs>>,
}

impl Shared {
    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ends that a session's worker holds.
pub(crate) struct Ends {
    pub(crate) chunks: mpsc::Receiver<Result<Chunk, Status>>,
    pub(crate) deliver: mpsc::Sender<Result<ActivationFrame, Status>>,
    pub(crate) handoffs: Vec<Frames>,
}

/// Where a session stands when its last chunk is computed: what is sent from then on is what prefill does not hide.
struct Tail {
    computed: Instant,
    /// Bytes of rows that each handoff had sent by then.
    sent: Vec<u64>,
}

pub(crate) struct Worker {
    shared: Shared,
    terms: Terms,
    ends: Ends,
    kept: Option<Kv>,
    span: Span,
    elapsed: Duration,
    activation_bytes: u64,
}

impl Worker {
    pub(crate) fn new(shared: Shared, terms: Terms, ends: Ends, kept: Option<Kv>, span: Span) -> Self {
        Self {
            shared,
            terms,
            ends,
            kept,
            span,
            elapsed: Duration::ZERO,
            activation_bytes: 0,
        }
    }

    /// Works until the shard is handed over, something fails, or `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let (deliver, handoffs) = (self.ends.deliver.clone(), self.ends.handoffs.clone());
        let (sessions, terms, span) = (
            Arc::clone(&self.shared.sessions),
            self.terms.clone(),
            self.span.clone(),
        );
        let handoff = Handoff::new(&terms, &handoffs);
        let left = handoff.left();
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Status::cancelled("session: ended")),
            // A dropped pull is a cancel: nobody wants this shard any more.
            () = left => Err(Status::cancelled("handoff: the output pod left")),
            result = self.prefill(handoff) => result,
        };
        span.record("compute_ms", self.elapsed.as_secs_f64() * 1e3);
        span.record("activation_bytes", self.activation_bytes);
        drop(self);
        let Err(status) = result else {
            return sessions.rest(&terms);
        };
        sessions.remove(&terms.session, terms.epoch);
        span.record("error", status.message());
        tracing::warn!(session = %terms.session, error = status.message(), "session failed");
        // The receivers may be gone already; then nobody needs the reason.
        let _ = deliver.try_send(Err(status.clone()));
        handoffs
            .iter()
            .for_each(|frames| drop(frames.try_send(Err(status.clone()))));
    }

    async fn prefill(&mut self, mut handoff: Handoff) -> Result<(), Status> {
        let mut onward = Onward::open(&self.terms, &self.shared.dialer, &self.ends.deliver, &self.span)?;
        let mut kv = self.kept.take().unwrap_or_else(|| self.empty());
        let tail = loop {
            let mut chunk = handoff.meanwhile(self.chunk()).await?;
            if chunk.start == 0 {
                // The other stages do not stand where this one does: all begin again.
                kv = self.empty();
            }
            kv.reserve(self.terms.tokens);
            self.check(&chunk, &kv)?;
            (chunk, kv) = handoff.meanwhile(self.compute(chunk, kv)).await?;
            let tail = Tail {
                computed: Instant::now(),
                sent: handoff.sent(),
            };
            let last = chunk.last;
            self.send(&mut onward, chunk).await?;
            handoff.offer(&kv).await;
            if last {
                break tail;
            }
        };
        self.hand_over(handoff, kv, tail).await?;
        onward.close(self.terms.timeout).await?;
        let session = self.shared.sessions.find(&self.terms.session, self.terms.epoch)?;
        let taken = tokio::time::timeout(self.terms.timeout, session.all_taken()).await;
        taken.map_err(|_| Status::deadline_exceeded("handoff: the output pod did not pull every part"))
    }

    fn empty(&self) -> Kv {
        let info = self.shared.slice.info();
        let span = LayerSpan {
            head: false,
            ..info.span
        };
        Kv::new(&info.layout, span)
    }

    async fn chunk(&mut self) -> Result<Chunk, Status> {
        let timeout = self.terms.timeout;
        match tokio::time::timeout(timeout, self.ends.chunks.recv()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => Err(Status::aborted(
                "input: expected chunks up to the last one, found the end of the stream",
            )),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "input: nothing came within {timeout:?}"
            ))),
        }
    }

    fn check(&self, chunk: &Chunk, kv: &Kv) -> Result<(), Status> {
        chunk.continues(kv).map_err(refused)?;
        let end = kv.frontier() + chunk.tokens.len() as u64;
        if end > self.terms.tokens || chunk.last != (end == self.terms.tokens) {
            let found = format!("{end} (last: {})", chunk.last);
            return Err(refused(("tokens", self.terms.tokens.to_string(), found)));
        }
        Ok(())
    }

    async fn compute(&mut self, mut chunk: Chunk, mut kv: Kv) -> Result<(Chunk, Kv), Status> {
        let mut done = 0;
        while done < chunk.tokens.len() {
            let piece = done..done + self.next(&chunk, done);
            done = piece.end;
            (chunk, kv) = self.piece(chunk, piece, kv).await?;
        }
        Ok((chunk, kv))
    }

    /// How many tokens of a chunk go next. The sessions of a stage take turns, so one waits for a piece of each of the others: these are small,
    /// and small in time. A session alone has pieces of a whole chunk, for which the weights are read once; deep in a prompt they are of as many
    /// tokens as take no longer than a chunk at its beginning, since another one may come.
    fn next(&self, chunk: &Chunk, done: usize) -> usize {
        let most = if self.shared.sessions.several() {
            PIECE
        } else {
            self.terms.chunk_tokens
        };
        #[allow(clippy::cast_possible_truncation)] // within the prompt
        let position = chunk.start as usize + done;
        let most = self.shared.costs().like(most, Kind::Own, position);
        // Equal pieces: a short last one would read the weights for little.
        let left = chunk.tokens.len() - done;
        left.div_ceil(left.div_ceil(most))
    }

    async fn piece(
        &mut self,
        mut chunk: Chunk,
        piece: Range<usize>,
        mut kv: Kv,
    ) -> Result<(Chunk, Kv), Status> {
        let slice = Arc::clone(&self.shared.slice);
        #[allow(clippy::cast_possible_truncation)] // within the prompt
        let done = Piece {
            kind: Kind::Own,
            position: chunk.start as usize + piece.start,
            tokens: piece.len(),
        };
        let span = self.span.clone();
        let work = move || {
            let _entered = span.enter();
            let started = now();
            let computed = chunk.compute(piece, &*slice, &mut kv);
            computed.map(|()| (chunk, kv, now() - started))
        };
        let result = self.shared.compute.run(work).await;
        let result = result.map_err(|error| Status::internal(error.to_string()))?;
        let (chunk, kv, elapsed) = result.map_err(|error| uncomputed(&error))?;
        self.elapsed += elapsed;
        self.shared.costs().learn_alone(&[done], elapsed.as_secs_f64());
        Ok((chunk, kv))
    }

    /// Hands a chunk to the next hop's stream, where it may lie while the next one is computed.
    async fn send(&mut self, onward: &mut Onward, chunk: Chunk) -> Result<(), Status> {
        let end = chunk.start + chunk.tokens.len() as u64;
        if onward.delivers() && end <= self.terms.held {
            // The output pod has computed its layers of these tokens itself.
            return onward.send(ActivationFrame::default(), self.terms.timeout).await;
        }
        for frame in activation_frames(
            &self.terms.session,
            self.terms.epoch,
            chunk,
            self.terms.frame_bytes,
        ) {
            self.activation_bytes += frame.data.len() as u64;
            onward.send(frame, self.terms.timeout).await?;
        }
        Ok(())
    }

    /// What is left, then the commits. The session is kept before the commits go: with them the output pod may come back at once.
    async fn hand_over(&self, mut handoff: Handoff, kv: Kv, tail: Tail) -> Result<(), Status> {
        handoff.rows(&kv).await?;
        let work = Work {
            compute: self.elapsed,
            last_chunk: tail.computed,
            tail_bytes: 0,
        };
        let commits = handoff.commits(&kv, &tail.sent, work, &propagation::traceparent(&self.span));
        self.span.record("kv_bytes", kv.bytes());
        self.shared.sessions.keep(&self.terms, kv);
        handoff.commit(commits).await
    }
}
