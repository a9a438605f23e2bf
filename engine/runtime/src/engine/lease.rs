//! Sessions on the stages: kept while they may be of use, let go after.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ds4_proto::v1::{RenewReply, RenewRequest, SessionRequest};

use super::Engine;
use super::held::Held;
use crate::route::{Remote, close};

/// Between looks when there is nothing to renew.
const LOOK: Duration = Duration::from_secs(1);
/// A stage that does not answer in this time may drop the sessions; they can be made again.
const ANSWER: Duration = Duration::from_secs(2);

/// Sessions whose leases are renewed.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<String, Lease>>);

#[derive(Debug)]
struct Lease {
    remote: Remote,
    until: Instant,
}

impl Leases {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the leases of `remote` for the time being.
    pub(super) fn hold(&self, remote: &Remote, hold: Duration) {
        let lease = Lease {
            remote: remote.clone(),
            until: Instant::now() + hold,
        };
        self.all().insert(remote.session.clone(), lease);
    }

    /// Renews no more; the stages drop the session when they need the room.
    fn release(&self, session: &str) {
        self.all().remove(session);
    }

    /// What to ask of each stage now: every session whose lease is worth it, by address.
    fn due(&self, now: Instant) -> (HashMap<String, Vec<SessionRequest>>, Duration) {
        let mut all = self.all();
        all.retain(|_, lease| lease.until > now);
        let mut due: HashMap<String, Vec<SessionRequest>> = HashMap::new();
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
        let (due, wait) = engine.leases.due(Instant::now());
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
        return;
    };
    let RenewReply { lost, draining } = answer.into_inner();
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
