//! A session that one request works on, and its way back when the request fails.

use std::sync::{Arc, PoisonError};

use ds4_gguf::LayerSpan;
use ds4_model::{Checkpoint, CompleteKv, Hidden, KvError};

use super::Engine;
use super::held::{Held, Mark, Resumed};
use crate::route::Remote;
use crate::shards::Shards;

/// Most tokens of an answer that its session has room for from the beginning; a longer one grows.
const ANSWER: u32 = 1024;

/// What a request starts from.
pub(super) struct Turn {
    pub(super) prompt: Arc<Vec<u32>>,
    /// Tokens that may follow it.
    answer: u32,
    /// The session at `held.tokens`, a beginning of the prompt.
    pub(super) held: Held,
    /// The last token's streams, when nothing is left to compute.
    pub(super) last: Option<Hidden>,
}

impl Turn {
    /// The session that shares most with the prompt, or an empty one.
    pub(super) fn begin(engine: &Engine, prompt: &Arc<Vec<u32>>, answer: u32) -> Result<Self, KvError> {
        let found = engine.cache().take(prompt);
        engine.show_cache();
        let Resumed { held, last } = match found {
            Some(held) => held.resume(prompt)?,
            None => Self::empty(engine),
        };
        Ok(Self {
            prompt: Arc::clone(prompt),
            answer,
            held,
            last,
        })
    }

    /// Without what earlier turns left.
    pub(super) fn cold(engine: &Engine, prompt: &Arc<Vec<u32>>, answer: u32) -> Self {
        let Resumed { held, last } = Self::empty(engine);
        Self {
            prompt: Arc::clone(prompt),
            answer,
            held,
            last,
        }
    }

    fn empty(engine: &Engine) -> Resumed {
        let held = Held {
            tokens: Vec::new(),
            kv: CompleteKv::empty(&engine.slice.info().layout),
            marks: Vec::new(),
            remote: None,
            saved: 0,
        };
        Resumed { held, last: None }
    }

    /// Prompt tokens that need not be computed.
    pub(super) const fn cached(&self) -> usize {
        self.held.tokens.len()
    }

    /// Takes the session apart for the hands that extend it.
    pub(super) fn lend(self, engine: &Arc<Engine>, spans: &[LayerSpan]) -> Loan {
        let Held {
            tokens,
            mut kv,
            marks,
            remote,
            saved,
        } = self.held;
        kv.kv_mut()
            .reserve(self.prompt.len() as u64 + u64::from(self.answer.min(ANSWER)));
        Loan {
            engine: Arc::clone(engine),
            prompt: self.prompt,
            answer: self.answer,
            checkpoint: kv.kv().checkpoint(),
            shards: Arc::new(Shards::split(kv, spans)),
            rest: Some(Rest {
                tokens,
                marks,
                remote,
                saved,
            }),
        }
    }
}

/// What a session is besides its rows.
pub(super) struct Rest {
    tokens: Vec<u32>,
    marks: Vec<Mark>,
    pub(super) remote: Option<Remote>,
    saved: usize,
}

/// A session in parts. Dropped (the client left), it goes back to where it was and stays for another turn.
pub(super) struct Loan {
    engine: Arc<Engine>,
    pub(super) prompt: Arc<Vec<u32>>,
    answer: u32,
    pub(super) shards: Arc<Shards>,
    checkpoint: Checkpoint,
    rest: Option<Rest>,
}

impl Loan {
    /// Prompt tokens that need not be computed.
    pub(super) fn cached(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.tokens.len())
    }

    /// The session as the stages may still hold it.
    pub(super) fn remote(&self) -> Option<&Remote> {
        self.rest.as_ref()?.remote.as_ref()
    }

    /// The session at the end of the prompt, with what is known of it besides.
    pub(super) fn done(mut self, kv: CompleteKv, hidden: &Hidden, remote: Option<Remote>) -> Held {
        let rest = self.rest.take();
        let (marks, before, saved) =
            rest.map_or_else(Default::default, |rest| (rest.marks, rest.remote, rest.saved));
        // Where nothing is kept for a later turn, nobody comes back to it.
        let kept = self.engine.options.kept_budget > 0;
        let mark = kept.then(|| Mark::new(&kv, hidden)).flatten();
        let mut held = Held {
            tokens: self.prompt.to_vec(),
            kv,
            marks,
            remote: remote.or(before),
            saved,
        };
        held.mark(mark);
        held
    }

    /// Back to where it was, for another attempt. Waits for whoever still works on it.
    pub(super) async fn back(mut self) -> Result<Turn, crate::EngineError> {
        let Some(Rest {
            tokens,
            marks,
            remote,
            saved,
        }) = self.rest.take()
        else {
            return Ok(Turn::cold(&self.engine, &self.prompt, self.answer));
        };
        let (shards, checkpoint) = (Arc::clone(&self.shards), self.checkpoint.clone());
        let restored = self.engine.compute.run(move || shards.restore(&checkpoint)).await;
        let kv = restored.map_err(|error| crate::EngineError::Internal(error.to_string()))?;
        let kv = kv.map_err(|error| crate::EngineError::Internal(error.to_string()))?;
        let held = Held {
            tokens,
            kv,
            marks,
            remote,
            saved,
        };
        Ok(Turn {
            prompt: Arc::clone(&self.prompt),
            answer: self.answer,
            held,
            last: None,
        })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(Rest {
            tokens, marks, saved, ..
        }) = self.rest.take()
        else {
            return;
        };
        if tokens.is_empty() {
            return;
        }
        let (engine, shards, checkpoint) = (
            Arc::clone(&self.engine),
            Arc::clone(&self.shards),
            self.checkpoint.clone(),
        );
        self.engine
            .compute
            .send(move || match shards.restore(&checkpoint) {
                // What the stages had of it ended with the attempt.
                Ok(kv) => engine.put(Held {
                    tokens,
                    kv,
                    marks,
                    remote: None,
                    saved,
                }),
                Err(error) => tracing::warn!(%error, "a session could not go back; it is forgotten"),
            });
    }
}

impl Engine {
    pub(super) fn cache(&self) -> std::sync::MutexGuard<'_, super::held::Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
