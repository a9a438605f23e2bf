//! The sessions of a stage: who may write to them, and how they end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ds4_proto::v1::{ActivationFrame, HandoffFrame, OpenRequest};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::chunk::Chunk;

pub(crate) type Outgoing<T> = mpsc::Receiver<Result<T, Status>>;

/// What a session was opened with.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) next_hop: String,
    pub(crate) tokens: u64,
    pub(crate) chunk_tokens: usize,
    pub(crate) window: usize,
    pub(crate) timeout: Duration,
}

impl Terms {
    pub(crate) fn new(request: &OpenRequest) -> Self {
        Self {
            session: request.session.clone(),
            epoch: request.epoch,
            next_hop: request.next_hop.clone(),
            tokens: request.tokens,
            chunk_tokens: request.chunk_tokens as usize,
            window: (request.window as usize).clamp(1, 64),
            timeout: Duration::from_millis(u64::from(request.timeout_ms.max(1))),
        }
    }
}

/// One session's ends: each is taken once, by the stream that serves it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) terms: Terms,
    pub(crate) cancel: CancellationToken,
    pub(crate) input: Mutex<Option<mpsc::Sender<Chunk>>>,
    pub(crate) deliver: Mutex<Option<Outgoing<ActivationFrame>>>,
    pub(crate) handoff: Mutex<Option<Outgoing<HandoffFrame>>>,
}

/// Takes an end of a session, once.
pub(crate) fn take<T>(end: &Mutex<Option<T>>, what: &str) -> Result<T, Status> {
    let taken = end.lock().unwrap_or_else(PoisonError::into_inner).take();
    taken.ok_or_else(|| {
        Status::failed_precondition(format!("{what}: expected one stream per session, found another"))
    })
}

/// All sessions of a stage.
#[derive(Debug)]
pub(crate) struct Sessions {
    most: usize,
    stop: CancellationToken,
    open: Mutex<HashMap<String, Arc<Session>>>,
}

impl Sessions {
    pub(crate) fn new(most: usize, stop: CancellationToken) -> Self {
        Self {
            most,
            stop,
            open: Mutex::new(HashMap::new()),
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token that ends with the session or with the stage.
    pub(crate) fn token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Adds a session; a newer epoch of the same session replaces and cancels the older one.
    pub(crate) fn add(&self, session: Arc<Session>) -> Result<(), Status> {
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("stage: shutting down"));
        }
        let mut open = self.open();
        if let Some(older) = open.get(&session.terms.session) {
            if older.terms.epoch >= session.terms.epoch {
                let (expected, found) = (older.terms.epoch + 1, session.terms.epoch);
                return Err(Status::failed_precondition(format!(
                    "epoch: expected {expected} or later, found {found}"
                )));
            }
            older.cancel.cancel();
        } else if open.len() >= self.most {
            return Err(Status::resource_exhausted(format!(
                "sessions: expected at most {}, found one more",
                self.most
            )));
        }
        open.insert(session.terms.session.clone(), session);
        Ok(())
    }

    /// The session of a request; other epochs than the open one are fenced off.
    pub(crate) fn find(&self, session: &str, epoch: u64) -> Result<Arc<Session>, Status> {
        let found = self.open().get(session).cloned();
        let found = found
            .ok_or_else(|| Status::not_found(format!("session: expected an open one, found {session:?}")))?;
        if found.terms.epoch == epoch {
            return Ok(found);
        }
        Err(Status::failed_precondition(format!(
            "epoch: expected {}, found {epoch}",
            found.terms.epoch
        )))
    }

    /// Forgets a session and ends its worker; false when it was not there.
    pub(crate) fn remove(&self, session: &str, epoch: u64) -> bool {
        let mut open = self.open();
        let ours = open.get(session).is_some_and(|found| found.terms.epoch == epoch);
        if ours && let Some(found) = open.remove(session) {
            found.cancel.cancel();
        }
        ours
    }

    /// Sessions open now.
    pub(crate) fn count(&self) -> usize {
        self.open().len()
    }
}
