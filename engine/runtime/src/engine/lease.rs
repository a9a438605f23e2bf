//! Sessions on the stages: kept while they may be of use, let go after.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ds4_proto::v1::{RenewReply, RenewRequest, SessionRequest};

use super::Engine;
use super::held::Held;
use crate::host::now;
use crate::route::{Remote, close};

/// Between looks when there is nothing to renew.
const LOOK: Duration = Duration::from_secs(1);
/// A stage that does not answer in this time may drop the sessions; they can be made again.
const ANSWER: Duration = Duration::from_secs(2);

/// Sessions whose leases are renewed.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Mutex<BTreeMap<String, Lease>>,
    /// When each stage last said that it holds what it should.
    answered: Mutex<BTreeMap<String, Instant>>,
}

#[derive(Debug)]
struct Lease {
    remote: Remote,
    until: Instant,
}

impl Leases {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every one of `stages` was heard of within `lately`: then nobody needs to ask whether it is there.
    pub(super) fn vouch<'a>(&self, mut stages: impl Iterator<Item = &'a str>, lately: Duration) -> bool {
        let (now, answered) = (now(), self.answered());
        stages.all(|stage| {
            let heard = answered.get(stage);
            heard.is_some_and(|heard| now.saturating_duration_since(*heard) < lately)
        })
    }

    /// Renews the leases of `remote` for the time being.
    pub(super) fn hold(&self, remote: &Remote, hold: Duration) {
        let lease = Lease {
            remote: remote.clone(),
            until: now() + hold,
        };
        self.all().insert(remote.session.clone(), lease);
    }

    /// Renews no more; the stages drop the session when they need the room.
    fn release(&self, session: &str) {
        self.all().remove(session);
    }

    /// What to ask of each stage now: every session whose lease is worth it, by address.
    fn due(&self, now: Instant) -> (BTreeMap<String, Vec<SessionRequest>>, Duration) {
        let mut all = self.all();
        all.retain(|_, lease| lease.until > now);
        let mut due: BTreeMap<String, Vec<SessionRequest>> = BTreeMap::new();
        for lease in all.values() {
            for hop in &lease.remote.hops {
                due.entry(hop.endpoint.clone()).or_default().push(SessionRequest {
                    session: lease.remote.session.clone(),
                    epoch: lease.remote.epoch,
                    ..SessionRequest::default()
                });
            }
        }
        // Three tries within a lease.
        let wait = all.values().map(|lease| lease.remote.lease / 3).min();
        (
            due,
            wait.unwrap_or(LOOK).clamp(Duration::from_millis(20), LOOK * 3),
        )
    }
}

/// Renews leases for as long as the engine is there.
pub(super) async fn renew(engine: Weak<Engine>) {
    while let Some(engine) = engine.upgrade() {
        let (due, wait) = engine.leases.due(now());
        let asked = due
            .into_iter()
            .map(|(endpoint, sessions)| ask(&engine, endpoint, sessions));
        futures::future::join_all(asked).await;
        drop(engine);
        tokio::time::sleep(wait).await;
    }
}

async fn ask(engine: &Engine, endpoint: String, sessions: Vec<SessionRequest>) {
    let Ok(links) = engine.pool.links(&endpoint) else {
        return;
    };
    let mut client = links.control;
    let request = RenewRequest {
        sessions: sessions.clone(),
    };
    let answer = tokio::time::timeout(ANSWER, client.renew(request)).await;
    let Ok(Ok(answer)) = answer else {
        tracing::debug!(endpoint, "leases were not renewed");
        engine.leases.answered().remove(&endpoint);
        engine.recheck.notify_one();
        return;
    };
    let RenewReply { lost, draining } = answer.into_inner();
    if lost.is_empty() && !draining {
        engine.leases.answered().insert(endpoint, now());
    } else {
        // It may be another process by now.
        engine.leases.answered().remove(&endpoint);
    }
    lost.iter().for_each(|session| engine.leases.release(session));
    if draining {
        // Everything that was made there is here as well: the stage may leave.
        for request in sessions {
            engine.leases.release(&request.session);
            let _ = tokio::time::timeout(ANSWER, client.close(request)).await;
        }
        engine.recheck.notify_one();
    }
}

impl Engine {
    /// Lets go of sessions that are not kept here any more.
    pub(super) fn forget(&self, gone: Vec<Held>) -> impl Future<Output = ()> + Send + 'static + use<> {
        let remotes: Vec<_> = gone.into_iter().filter_map(|held| held.remote).collect();
        remotes
            .iter()
            .for_each(|remote| self.leases.release(&remote.session));
        let calls: Vec<_> = remotes
            .iter()
            .map(|remote| close(&remote.hops, &remote.session, remote.epoch))
            .collect();
        async { drop(futures::future::join_all(calls).await) }
    }
}
