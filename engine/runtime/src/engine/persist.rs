//! Sessions between memory and disk.

use std::sync::Arc;

use super::Engine;
use super::held::Held;
use crate::store::LEAST_TOKENS;

/// A session that stays in memory is written when it has grown by this part since it was last: a process that is killed loses little.
const GROWN: usize = 4;

impl Engine {
    /// Brings back from disk what `prompt` continues, when memory holds less of it.
    pub(super) async fn recall(self: &Arc<Self>, prompt: &Arc<Vec<u32>>) {
        let Some(store) = self.options.store.clone() else {
            return;
        };
        let shared = self.cache().shared(prompt);
        let wanted = Arc::clone(prompt);
        let loaded = tokio::task::spawn_blocking(move || store.load(&wanted, shared)).await;
        if let Ok(Some((tokens, kv))) = loaded {
            tracing::info!(tokens = tokens.len(), "session brought back from disk");
            let saved = tokens.len();
            self.put(Held {
                tokens,
                kv,
                marks: Vec::new(),
                remote: None,
                saved,
            });
        }
    }

    /// Keeps a session in memory and, when it has grown enough, writes it as well. The next turn need not wait for the disk.
    pub(super) async fn keep(self: &Arc<Self>, mut held: Held) {
        let grown = held.tokens.len() >= LEAST_TOKENS && held.tokens.len() - held.saved > held.saved / GROWN;
        let Some(store) = self.options.store.clone().filter(|_| grown) else {
            return self.put(held);
        };
        held.saved = held.tokens.len();
        let (copied, put) = tokio::sync::oneshot::channel();
        let engine = Arc::clone(self);
        self.tasks.spawn_blocking(move || {
            let (tokens, kv) = (held.tokens.clone(), held.kv.clone());
            engine.put(held);
            // The caller may be gone.
            let _ = copied.send(());
            store.save(&tokens, &kv);
        });
        let _ = put.await;
    }

    /// Writes sessions that leave memory.
    pub(super) async fn save_all(&self, sessions: Vec<Held>) -> Vec<Held> {
        let Some(store) = self.options.store.clone() else {
            return sessions;
        };
        let work = move || {
            let unsaved = sessions.iter().filter(|held| held.tokens.len() > held.saved);
            unsaved.for_each(|held| store.save(&held.tokens, &held.kv));
            sessions
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_default()
    }
}
