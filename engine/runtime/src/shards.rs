//! A session taken apart by layers while several hands extend it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ds4_gguf::LayerSpan;
use ds4_model::{Checkpoint, CompleteKv, Kv, KvError, KvLayout};

/// The layers of one session, each run behind a lock of its own. Together they are at one frontier before and after, not in between.
#[derive(Debug)]
pub(crate) struct Shards {
    layout: KvLayout,
    parts: Vec<Mutex<Kv>>,
}

impl Shards {
    /// Takes `kv` apart into `spans`, which must tile it.
    pub(crate) fn split(kv: CompleteKv, spans: &[LayerSpan]) -> Self {
        let layout = kv.kv().layout().clone();
        let parts = kv.split(spans).into_iter().map(Mutex::new).collect();
        Self { layout, parts }
    }

    /// One run of layers.
    pub(crate) fn part(&self, index: usize) -> MutexGuard<'_, Kv> {
        self.parts[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last run: the output pod's own layers.
    pub(crate) fn own(&self) -> MutexGuard<'_, Kv> {
        self.part(self.parts.len() - 1)
    }

    /// Puts the session together; nothing is left here. Waits for whoever works on a part.
    pub(crate) fn join(&self) -> Result<CompleteKv, KvError> {
        CompleteKv::assemble(&self.layout, self.take())
    }

    /// Goes back to `to`, wherever the parts have come, and puts the session together.
    pub(crate) fn restore(&self, to: &Checkpoint) -> Result<CompleteKv, KvError> {
        let mut parts = self.take();
        parts.iter_mut().try_for_each(|part| part.rewind(to))?;
        CompleteKv::assemble(&self.layout, parts)
    }

    fn take(&self) -> Vec<Kv> {
        let parts = (0..self.parts.len()).map(|index| {
            let mut part = self.part(index);
            let empty = Kv::new(&self.layout, part.span());
            std::mem::replace(&mut *part, empty)
        });
        parts.collect()
    }
}
