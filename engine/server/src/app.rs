//! What every handler shares.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use ds4_runtime::Engine;
use ds4_tokenizer::Tokenizer;

/// How the server answers.
#[derive(Clone, Debug, Default)]
pub struct AppOptions {
    /// The model id that clients send.
    pub model: String,
    /// Bearer keys; none: everyone may ask.
    pub api_keys: Vec<String>,
}

/// What exists once the model is loaded.
#[derive(Debug)]
pub struct Loaded {
    /// Computes.
    pub engine: Arc<Engine>,
    /// Reads and writes text.
    pub tokenizer: Tokenizer,
}

/// The server's state. It answers health checks before a model is loaded.
#[derive(Debug)]
pub struct App {
    pub(crate) options: AppOptions,
    pub(crate) created: u64,
    loaded: OnceLock<Loaded>,
    progress: std::sync::atomic::AtomicU64,
}

impl App {
    /// A server without a model.
    #[must_use]
    pub fn new(options: AppOptions) -> Arc<Self> {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Arc::new(Self {
            options,
            created,
            loaded: OnceLock::new(),
            progress: std::sync::atomic::AtomicU64::new(0),
        })
    }

    /// Takes the model; a second one is ignored.
    pub fn load(&self, loaded: Loaded) {
        // The caller loads once; nothing is lost when it does so twice.
        let _ = self.loaded.set(loaded);
    }

    /// The model, once it is there.
    #[must_use]
    pub fn loaded(&self) -> Option<&Loaded> {
        self.loaded.get()
    }

    /// Notes how much of the model is read, in percent; shown by `/readyz`.
    pub fn loading(&self, percent: u64) {
        self.progress.store(percent, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn percent(&self) -> u64 {
        self.progress.load(std::sync::atomic::Ordering::Relaxed)
    }
}
