//! How far a fetch is: counters that anyone may read while it runs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Asking the source.
    #[default]
    Connecting,
    /// Another process fetches the same file.
    Waiting,
    /// Reading back what earlier runs left.
    Checking,
    /// Bytes arrive.
    Fetching,
    /// Hashing the whole file.
    Verifying,
    /// Complete.
    Done,
    /// Ended with an error.
    Failed,
}

/// The state as it is published: by HTTP, in the status file, and as a pod's termination message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Snapshot {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of the wanted layers that are here.
    pub loaded_bytes: u64,
    /// Bytes that the wanted layers take; 0 while unknown.
    pub total_bytes: u64,
    /// Requests that failed and were sent again.
    pub retries: u64,
    /// Why it ended, when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was verified, once done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
}

/// Shared by the fetch and those who watch it.
#[derive(Debug, Default)]
pub struct Progress {
    loaded: AtomicU64,
    total: AtomicU64,
    retries: AtomicU64,
    words: Mutex<(Phase, Option<String>, Option<String>)>,
}

impl Progress {
    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (phase, error, verified) = self.words().clone();
        Snapshot {
            phase,
            loaded_bytes: self.loaded.load(Ordering::Relaxed),
            total_bytes: self.total.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            error,
            verified,
        }
    }

    /// Ends with an error.
    pub fn fail(&self, error: &str) {
        let mut words = self.words();
        (words.0, words.1) = (Phase::Failed, Some(error.to_owned()));
    }

    pub(crate) fn finish(&self, verified: String) {
        let mut words = self.words();
        (words.0, words.2) = (Phase::Done, Some(verified));
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.words().0 = phase;
    }

    pub(crate) fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.loaded.store(0, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.loaded.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn words(&self) -> std::sync::MutexGuard<'_, (Phase, Option<String>, Option<String>)> {
        self.words
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
