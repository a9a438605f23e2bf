//! What every handler shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ds4_grammar::{GrammarError, Grammars};
use ds4_runtime::Engine;
use ds4_tokenizer::Tokenizer;

use crate::journal::Journal;
use crate::keys::{Keys, Limits};

/// How the server answers.
#[derive(Clone, Debug)]
pub struct AppOptions {
    /// The model id that clients send.
    pub model: String,
    /// Keys that clients must have one of; none: everyone may ask.
    pub api_keys: Vec<String>,
    /// What each key may do.
    pub key_limits: Limits,
    /// Longest silence of a stream.
    pub keep_alive: Duration,
}

impl Default for AppOptions {
    fn default() -> Self {
        Self {
            model: String::new(),
            api_keys: Vec::new(),
            key_limits: Limits::default(),
            // Proxies close streams that are quiet for half a minute and more.
            keep_alive: Duration::from_secs(15),
        }
    }
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
    pub(crate) journal: Arc<Journal>,
    pub(crate) keys: Keys,
    loaded: OnceLock<Loaded>,
    pub(crate) grammars: OnceLock<Result<Grammars, GrammarError>>,
    progress: AtomicU64,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl App {
    /// A server without a model.
    #[must_use]
    pub fn new(options: AppOptions) -> Arc<Self> {
        Arc::new(Self {
            created: now(),
            journal: Arc::default(),
            keys: Keys::new(&options.api_keys, options.key_limits),
            options,
            loaded: OnceLock::new(),
            grammars: OnceLock::new(),
            progress: AtomicU64::new(0),
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
        self.progress.store(percent, Ordering::Relaxed);
    }

    pub(crate) fn percent(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}
