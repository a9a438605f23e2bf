//! A model that knows what processor time each token of a prompt took it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ds4_model::{Hidden, ModelError, ModelSlice, Part, SliceInfo};
use rustix::time::{ClockId, clock_gettime};

/// Seconds of the computing thread, by the position of the first token of a piece.
pub type Times = BTreeMap<u64, f64>;

/// The wrapped model, with one thread of its own.
pub struct Timed {
    real: Arc<dyn ModelSlice>,
    times: Mutex<Times>,
    /// Embedded, and not yet counted with its piece.
    embedding: Mutex<f64>,
}

impl Timed {
    pub fn of(real: Arc<dyn ModelSlice>) -> Arc<Self> {
        Arc::new(Self {
            real,
            times: Mutex::default(),
            embedding: Mutex::default(),
        })
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Times {
        std::mem::take(&mut self.times.lock().unwrap())
    }
}

/// Seconds that this thread has run, whoever else is on the machine.
fn this_thread() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = this_thread();
    let result = work();
    (result, this_thread() - started)
}

impl ModelSlice for Timed {
    fn info(&self) -> &SliceInfo {
        self.real.info()
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        let (hidden, seconds) = timed(|| self.real.embed(tokens));
        *self.embedding.lock().unwrap() += seconds;
        hidden
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        let position = parts.first().map(|part| part.kv.frontier());
        let (done, seconds) = timed(|| self.real.forward_batch(parts, hidden));
        let embedding = std::mem::take(&mut *self.embedding.lock().unwrap());
        if let Some(position) = position {
            *self.times.lock().unwrap().entry(position).or_default() += seconds + embedding;
        }
        done
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.real.logits_batch(hidden, tokens)
    }
}
