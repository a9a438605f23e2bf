//! A chunk of a prompt that waits for its turn, or is computed in part.

use std::sync::{Arc, MutexGuard};

use ds4_model::{Hidden, Kv, ModelError, ModelSlice};
use tokio::sync::oneshot;

use super::super::schedule::{Flow, Kind, Piece, Waiting};
use super::Uncomputed;
use crate::chunk::forward_piece;
use crate::shards::Shards;

pub(crate) type Done = oneshot::Sender<Result<Hidden, Uncomputed>>;

/// Whose prompt it is, and what stands of it here.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) flow: Flow,
    pub(crate) shards: Arc<Shards>,
    /// The whole prompt.
    pub(crate) prompt: Arc<Vec<u32>>,
}

/// Some tokens of a prompt at the frontier of the own layers.
pub(crate) struct Chunk {
    member: Member,
    /// Position of the next token to compute, and of the chunk's end.
    next: usize,
    end: usize,
    start: usize,
    /// Streams of the chunk's tokens where stages came before: after the own layers those up to `next`, before them the others.
    streams: Option<Hidden>,
    /// Streams of the tokens up to `next` where none came before.
    after: Vec<f32>,
    pub(super) passed: u32,
    done: Done,
}

impl Chunk {
    /// Tokens `start..end` of the prompt; `streams` are theirs where stages came before, otherwise they begin with the embedding.
    pub(crate) const fn new(
        member: Member,
        (start, end): (usize, usize),
        streams: Option<Hidden>,
        done: Done,
    ) -> Self {
        Self {
            member,
            next: start,
            end,
            start,
            streams,
            after: Vec::new(),
            passed: 0,
            done,
        }
    }

    pub(super) const fn kind(&self) -> Kind {
        if self.streams.is_none() {
            Kind::Whole
        } else {
            Kind::Own
        }
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting {
            flow: self.member.flow,
            kind: self.kind(),
            ready: self.end - self.next,
            position: self.next,
            left: self.member.prompt.len() - self.next,
            passed: self.passed,
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.done.is_closed()
    }

    pub(super) const fn is_done(&self) -> bool {
        self.next == self.end
    }

    pub(super) const fn prompt(&self) -> &Arc<Vec<u32>> {
        &self.member.prompt
    }

    pub(super) fn ends_prompt(&self) -> bool {
        self.end == self.member.prompt.len()
    }

    /// The next tokens.
    pub(super) fn next(&self, tokens: usize) -> &[u32] {
        &self.member.prompt[self.next..self.next + tokens]
    }

    /// The session's rows in the own layers.
    pub(super) fn own(&self) -> MutexGuard<'_, Kv> {
        self.member.shards.own()
    }

    /// The next tokens, as what they will have been.
    pub(super) const fn piece(&self, tokens: usize) -> Piece {
        Piece {
            kind: self.kind(),
            position: self.next,
            tokens,
        }
    }

    /// The next tokens are computed.
    pub(super) fn advance(&mut self, rows: &[f32], tokens: usize) {
        self.after.extend_from_slice(rows);
        self.next += tokens;
    }

    /// Computes the next tokens alone, from the streams that came.
    pub(super) fn forward(&mut self, slice: &dyn ModelSlice, tokens: usize) -> Result<(), ModelError> {
        let mut streams = self
            .streams
            .take()
            .ok_or_else(|| slice.info().lacks("a chunk without streams"))?;
        let first = self.next - self.start;
        let (own, piece) = (&self.member.prompt[self.start..self.end], first..first + tokens);
        forward_piece(slice, own, piece, &mut streams, &mut self.own())?;
        self.streams = Some(streams);
        self.next += tokens;
        Ok(())
    }

    /// All tokens are computed.
    pub(super) fn finish(self) {
        let width = self.after.len() / (self.end - self.start);
        let streams = self.streams.or_else(|| Hidden::from_vec(width, self.after));
        if let Some(hidden) = streams {
            // The client may have left.
            let _ = self.done.send(Ok(hidden));
        }
    }

    pub(super) fn fail(self, error: &ModelError) {
        let _ = self.done.send(Err(Uncomputed(error.to_string())));
    }
}
