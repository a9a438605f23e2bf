//! The sessions of a stage as its calls see them: the table, and the open ends of those that work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ds4_gguf::LayerSpan;
use ds4_model::Kv;
use ds4_proto::v1::{ActivationFrame, OpenRequest, SessionRequest};
use ds4_proto::{FRAME_BYTES, MAX_FRAME_BYTES};
use ds4_telemetry::metrics::Metrics;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::refusal::{fenced, refusal};
use super::service::Input;
use super::table::{Limits, Table, Totals};
use crate::frames::Encoded;
use crate::host::now;
use crate::planted::{self, Bug};

pub(crate) type Outgoing<T> = mpsc::Receiver<Result<T, Status>>;

/// Most handoffs that may share a stage's layers.
const MOST_STREAMS: u32 = 16;

/// What a session was opened with.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) next_hop: String,
    pub(crate) tokens: u64,
    pub(crate) held: u64,
    pub(crate) chunk_tokens: usize,
    pub(crate) window: usize,
    pub(crate) timeout: Duration,
    pub(crate) frame_bytes: usize,
    /// The layers of each handoff.
    pub(crate) streams: Vec<LayerSpan>,
}

impl Terms {
    pub(crate) fn new(request: &OpenRequest, span: LayerSpan) -> Self {
        let frame_bytes = match request.frame_bytes as usize {
            0 => FRAME_BYTES,
            bytes => bytes.min(MAX_FRAME_BYTES),
        };
        Self {
            session: request.session.clone(),
            epoch: request.epoch,
            next_hop: request.next_hop.clone(),
            tokens: request.tokens,
            held: request.held_tokens,
            chunk_tokens: request.chunk_tokens as usize,
            window: (request.window as usize).clamp(1, 64),
            timeout: Duration::from_millis(u64::from(request.timeout_ms.max(1))),
            frame_bytes,
            streams: shares(span, request.streams.clamp(1, MOST_STREAMS)),
        }
    }
}

/// The layers of `span` in at most `streams` runs of nearly equal length. Both ends of a handoff use this.
pub(crate) fn shares(span: LayerSpan, streams: u32) -> Vec<LayerSpan> {
    let layers = span.last + 1 - span.first;
    let streams = (streams.clamp(1, MOST_STREAMS) as usize).min(layers);
    let edge = |i: usize| span.first + layers * i / streams;
    let share = |i| LayerSpan {
        first: edge(i),
        last: edge(i + 1) - 1,
        head: false,
    };
    (0..streams).map(share).collect()
}

/// A working session's ends: each is taken once, by the stream that serves it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) terms: Terms,
    pub(crate) cancel: CancellationToken,
    pub(crate) input: Mutex<Option<Input>>,
    pub(crate) deliver: Mutex<Option<Outgoing<ActivationFrame>>>,
    pub(crate) handoffs: Vec<Mutex<Option<Outgoing<Encoded>>>>,
    /// Told when an end is taken.
    pub(crate) taken: Notify,
}

impl Session {
    /// Takes an end, once.
    pub(crate) fn take<T>(&self, end: &Mutex<Option<T>>, what: &str) -> Result<T, Status> {
        let taken = lock(end).take();
        self.taken.notify_waiters();
        taken.ok_or_else(|| {
            Status::failed_precondition(format!("{what}: expected one stream per session, found another"))
        })
    }

    /// Resolves when everything that the output pod pulls is pulled. A short prompt is computed before it has asked for all.
    pub(crate) async fn all_taken(&self) {
        loop {
            let taken = self.taken.notified();
            let delivered = !self.terms.next_hop.is_empty() || lock(&self.deliver).is_none();
            if delivered && self.handoffs.iter().all(|handoff| lock(handoff).is_none()) {
                return;
            }
            taken.await;
        }
    }
}

fn lock<T>(end: &Mutex<T>) -> MutexGuard<'_, T> {
    end.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Known {
    table: Table<Kv>,
    working: HashMap<String, Arc<Session>>,
}

/// All sessions of a stage.
#[derive(Debug)]
pub(crate) struct Sessions {
    known: Mutex<Known>,
    stop: CancellationToken,
    /// Told after every change, for whoever waits until nothing is left.
    changed: Notify,
    counted: Mutex<Totals>,
}

impl Sessions {
    pub(crate) fn new(limits: Limits, stop: CancellationToken) -> Self {
        let known = Known {
            table: Table::new(limits),
            working: HashMap::new(),
        };
        Self {
            known: Mutex::new(known),
            stop,
            changed: Notify::new(),
            counted: Mutex::new(Totals::default()),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the table and shows what it holds now.
    fn change<T>(&self, work: impl FnOnce(&mut Known, Instant) -> T) -> T {
        let (mut known, now) = (self.known(), now());
        let result = work(&mut known, now);
        let totals = known.table.totals(now);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        show(*counted, totals);
        *counted = totals;
        drop((known, counted));
        self.changed.notify_waiters();
        result
    }

    /// A token that ends with the session or with the stage.
    pub(crate) fn token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Ends every session.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Adds an attempt that may come to hold `bytes`; an older attempt of the same session is cancelled. Returns what the stage kept of it.
    pub(crate) fn open(&self, session: Arc<Session>, bytes: u64) -> Result<Option<Kv>, Status> {
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("stage: shutting down"));
        }
        let terms = session.terms.clone();
        let opened = self.change(|known, now| {
            known.hold_working(now);
            let opened = known.table.open(now, &terms.session, terms.epoch, bytes)?;
            if let Some(older) = known.working.insert(terms.session.clone(), session) {
                older.cancel.cancel();
            }
            Ok(opened)
        });
        let opened = opened.map_err(|refused| refusal(&refused))?;
        for evicted in opened.evicted {
            tracing::info!(
                session = evicted,
                "dropped: its lease had lapsed and its room was needed"
            );
        }
        Ok(opened.kept)
    }

    /// The working session of a request; other epochs than the open one are fenced off.
    pub(crate) fn find(&self, session: &str, epoch: u64) -> Result<Arc<Session>, Status> {
        let known = self.known();
        known
            .table
            .fence(session, epoch)
            .map_err(|refused| fenced(&refused))?;
        let found = known
            .working
            .get(session)
            .filter(|found| found.terms.epoch == epoch || planted::is(Bug::StaleEpoch));
        found.cloned().ok_or_else(|| {
            Status::failed_precondition(format!(
                "session: expected one that works, found {session:?} at rest"
            ))
        })
    }

    /// Keeps what an attempt made, under a lease.
    pub(crate) fn keep(&self, terms: &Terms, kv: Kv) {
        let bytes = kv.bytes();
        // Given back when a newer attempt has taken over: this one's rows are of no use any more.
        let late = self.change(|known, now| known.table.keep(now, &terms.session, terms.epoch, kv, bytes));
        drop(late);
    }

    /// The worker of a session has nothing more to do; what was kept stays.
    pub(crate) fn rest(&self, terms: &Terms) {
        self.change(|known, _| known.forget(&terms.session, terms.epoch));
    }

    /// Forgets a session and ends its worker; false when that epoch was not there.
    pub(crate) fn remove(&self, session: &str, epoch: u64) -> bool {
        self.change(|known, _| {
            known.forget(session, epoch);
            known.table.remove(session, epoch)
        })
    }

    /// Renews leases; returns the sessions that are not held.
    pub(crate) fn renew(&self, sessions: Vec<SessionRequest>) -> Vec<String> {
        let sessions = sessions
            .into_iter()
            .map(|request| (request.session, request.epoch));
        self.change(|known, now| known.table.renew(now, sessions))
    }

    /// Drops what nobody renews any more.
    pub(crate) fn sweep(&self) {
        let dropped = self.change(|known, now| {
            known.hold_working(now);
            known.table.sweep(now)
        });
        for session in dropped {
            tracing::info!(session, "dropped: its lease had lapsed");
        }
    }

    /// Takes no new work from now on.
    pub(crate) fn drain(&self) {
        self.change(|known, _| known.table.drain());
    }

    /// Whether more than one session works.
    pub(crate) fn several(&self) -> bool {
        self.known().working.len() > 1
    }

    /// Sessions that work, by name and epoch.
    #[cfg(test)]
    pub(crate) fn working(&self) -> Vec<(String, u64)> {
        let known = self.known();
        let terms = known.working.values().map(|session| &session.terms);
        let mut working: Vec<_> = terms.map(|terms| (terms.session.clone(), terms.epoch)).collect();
        working.sort();
        working
    }

    #[cfg(test)]
    pub(crate) fn totals(&self) -> Totals {
        self.known().table.totals(now())
    }

    pub(crate) fn draining(&self) -> bool {
        self.known().table.draining()
    }

    /// Resolves when nothing works and no lease is left.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            let totals = self.known().table.totals(now());
            if totals.working + totals.leased == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Known {
    /// A session whose rows are still being pulled is in use, however long that takes.
    fn hold_working(&mut self, now: Instant) {
        let working = self
            .working
            .values()
            .map(|session| (session.terms.session.clone(), session.terms.epoch));
        let working: Vec<_> = working.collect();
        self.table.renew(now, working);
    }

    fn forget(&mut self, session: &str, epoch: u64) {
        let ours = self
            .working
            .get(session)
            .is_some_and(|found| found.terms.epoch == epoch);
        if ours && let Some(found) = self.working.remove(session) {
            found.cancel.cancel();
        }
    }
}

/// What a stage that ends held is not held any more.
impl Drop for Sessions {
    fn drop(&mut self) {
        let counted = *self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        show(counted, Totals::default());
    }
}

/// Several stages may live in one process (in tests), so gauges move by differences.
#[allow(clippy::cast_possible_wrap)] // counts and bytes of one machine
fn show(before: Totals, after: Totals) {
    let metrics = &Metrics::global().stage;
    metrics
        .working
        .inc_by(after.working as i64 - before.working as i64);
    metrics.leased.inc_by(after.leased as i64 - before.leased as i64);
    metrics.idle.inc_by(after.idle as i64 - before.idle as i64);
    metrics.kv_bytes.inc_by(after.bytes as i64 - before.bytes as i64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shared_out_evenly_and_all_of_them() {
        let span = |first, last| LayerSpan {
            first,
            last,
            head: false,
        };
        assert_eq!(shares(span(0, 21), 1), [span(0, 21)]);
        assert_eq!(shares(span(0, 21), 2), [span(0, 10), span(11, 21)]);
        assert_eq!(shares(span(3, 5), 2), [span(3, 3), span(4, 5)]);
        assert_eq!(shares(span(3, 4), 9), [span(3, 3), span(4, 4)]);
        assert_eq!(shares(span(3, 4), 0), [span(3, 4)]);
    }
}
