//! A device that is beyond repair: noticed in one place, whoever asked it. The process then ends, since every later call would fail, and only a new
//! process gets a device that works.

use std::sync::Arc;

use ds4_model::{Drafter, Hidden, ModelError, ModelSlice, Part, SliceInfo};
use tokio::sync::watch;

/// A slice that knows whether its device still works.
pub(crate) struct Watched {
    slice: Arc<dyn ModelSlice>,
    broken: watch::Sender<Option<String>>,
}

impl Watched {
    pub(crate) fn new(slice: Arc<dyn ModelSlice>) -> Arc<Self> {
        Arc::new(Self {
            slice,
            broken: watch::Sender::new(None),
        })
    }

    /// What the device said when it broke.
    pub(crate) fn reason(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// Resolves when the device breaks, with what it said.
    pub(crate) async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        let found = broken.wait_for(Option::is_some).await;
        // The sender lives as long as this call, so that there is a reason.
        found.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    /// What `work` gives. A broken device is not asked again: it would only say less clearly what it said first.
    fn ask<T>(&self, work: impl FnOnce(&dyn ModelSlice) -> Result<T, ModelError>) -> Result<T, ModelError> {
        if let Some(reason) = self.reason() {
            return Err(ModelError::Device {
                device: "device".into(),
                fatal: true,
                source: reason.into(),
            });
        }
        let result = work(&*self.slice);
        if let Err(error @ ModelError::Device { fatal: true, .. }) = &result {
            tracing::error!(%error, "the device is beyond repair: this process ends");
            self.broken.send_replace(Some(error.to_string()));
        }
        result
    }
}

impl ModelSlice for Watched {
    fn info(&self) -> &SliceInfo {
        self.slice.info()
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.ask(|slice| slice.embed(tokens))
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.ask(|slice| slice.forward_batch(parts, hidden))
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.ask(|slice| slice.logits_batch(hidden, tokens))
    }

    /// Only the processor has one, and it does not break.
    fn drafter(&self) -> Option<&dyn Drafter> {
        self.slice.drafter()
    }
}
