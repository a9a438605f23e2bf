//! Sessions that the output pod keeps for the next turn.

use ds4_model::{Checkpoint, CompleteKv, Hidden, KvError};

use crate::route::Remote;

/// Prompts whose ends are remembered per session.
const MARKS: usize = 2;

/// The end of a prompt: where a session can go back to when the answer after it was another one, or is asked for again.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    checkpoint: Checkpoint,
    /// Streams of the last token before it; with them nothing has to be computed to go on from here.
    last: Hidden,
}

impl Mark {
    /// Remembers where `kv` stands; `hidden` are the streams of its last tokens.
    pub(crate) fn new(kv: &CompleteKv, hidden: &Hidden) -> Option<Self> {
        let last = hidden.token(hidden.tokens().checked_sub(1)?).to_vec();
        Some(Self {
            checkpoint: kv.kv().checkpoint(),
            last: Hidden::from_vec(hidden.width(), last)?,
        })
    }

    #[allow(clippy::cast_possible_truncation)] // positions in a token list
    const fn position(&self) -> usize {
        self.checkpoint.frontier() as usize
    }

    fn bytes(&self) -> u64 {
        self.checkpoint.bytes() + 4 * self.last.as_slice().len() as u64
    }
}

/// A session at rest.
#[derive(Debug)]
pub(crate) struct Held {
    /// The tokens of `kv`.
    pub(crate) tokens: Vec<u32>,
    pub(crate) kv: CompleteKv,
    pub(crate) marks: Vec<Mark>,
    pub(crate) remote: Option<Remote>,
    /// Tokens of it that lie on disk.
    pub(crate) saved: usize,
}

/// A session cut back to what it shares with a prompt.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) held: Held,
    /// The last token's streams, when the whole prompt is there.
    pub(crate) last: Option<Hidden>,
}

impl Held {
    /// How many tokens of `prompt` need not be computed again. Fewer than all, unless the end of this very prompt is remembered.
    pub(crate) fn shared(&self, prompt: &[u32]) -> usize {
        let tip = self.tokens.len();
        if tip < prompt.len() && prompt.starts_with(&self.tokens) {
            return tip;
        }
        let fits = |mark: &&Mark| prompt.starts_with(&self.tokens[..mark.position()]);
        let marks = self
            .marks
            .iter()
            .filter(|mark| mark.position() <= tip.min(prompt.len()));
        marks.filter(fits).map(Mark::position).max().unwrap_or(0)
    }

    /// Goes back to what is shared with `prompt`.
    pub(crate) fn resume(mut self, prompt: &[u32]) -> Result<Resumed, KvError> {
        let shared = self.shared(prompt);
        let mark = self.marks.iter().find(|mark| mark.position() == shared).cloned();
        if shared < self.tokens.len()
            && let Some(mark) = &mark
        {
            self.kv.kv_mut().rewind(&mark.checkpoint)?;
            self.tokens.truncate(shared);
            self.saved = self.saved.min(shared);
            self.marks.retain(|mark| mark.position() <= shared);
        }
        let last = mark.filter(|_| shared == prompt.len()).map(|mark| mark.last);
        Ok(Resumed { held: self, last })
    }

    /// Remembers the end of a prompt.
    pub(crate) fn mark(&mut self, mark: Option<Mark>) {
        let Some(mark) = mark else { return };
        self.marks.retain(|old| old.position() < mark.position());
        self.marks.push(mark);
        let over = self.marks.len().saturating_sub(MARKS);
        self.marks.drain(..over);
    }

    pub(crate) fn bytes(&self) -> u64 {
        let marks: u64 = self.marks.iter().map(Mark::bytes).sum();
        self.kv.kv().bytes() + marks + 4 * self.tokens.len() as u64
    }
}

/// Sessions at rest, the longest unused first.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    sessions: Vec<Held>,
}

impl Cache {
    /// How much of `prompt` is held.
    pub(crate) fn shared(&self, prompt: &[u32]) -> usize {
        self.sessions
            .iter()
            .map(|held| held.shared(prompt))
            .max()
            .unwrap_or(0)
    }

    /// Takes the session that shares most with `prompt`.
    pub(crate) fn take(&mut self, prompt: &[u32]) -> Option<Held> {
        let shared = self
            .sessions
            .iter()
            .enumerate()
            .map(|(i, held)| (held.shared(prompt), i));
        let (shared, best) = shared.max()?;
        (shared > 0).then(|| self.sessions.remove(best))
    }

    /// Keeps a session.
    pub(crate) fn put(&mut self, held: Held) {
        self.sessions.push(held);
    }

    /// Keeps to `budget` bytes; returns those that had to go for it.
    pub(crate) fn shrink(&mut self, budget: u64) -> Vec<Held> {
        let (mut bytes, mut go) = (self.bytes(), 0);
        while bytes > budget && go < self.sessions.len() {
            bytes -= self.sessions[go].bytes();
            go += 1;
        }
        self.sessions.drain(..go).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sessions.iter().map(Held::bytes).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Everything, when the engine ends.
    pub(crate) fn clear(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.sessions)
    }
}
