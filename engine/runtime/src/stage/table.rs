//! Which sessions a stage knows, how long it keeps them, and what it refuses. Pure: time comes in, nothing is done here.
//!
//! A session is *working* while chunks flow, then *kept* under a lease that its owner renews. A lease is a promise: a leased session is never
//! dropped for another one. When the lease has lapsed the session stays as long as nobody needs its room, but no longer than `idle`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::planted::{self, Bug};

/// What a stage has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sessions that may work at once.
    pub(crate) working: usize,
    /// Bytes of KV of all sessions together.
    pub(crate) bytes: u64,
    /// How long a kept session is safe after it was last renewed.
    pub(crate) lease: Duration,
    /// How long it may stay after that.
    pub(crate) idle: Duration,
}

/// Why a session is not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("epoch: expected {expected} or later, found {found}")]
    Epoch { expected: u64, found: u64 },
    #[error("sessions: expected at most {most}, found one more; try again in {retry_after:?}")]
    Sessions { most: usize, retry_after: Duration },
    #[error(
        "kv budget: expected at most {most} bytes, found {asked} on top of {held}; try again in {retry_after:?}"
    )]
    Budget {
        most: u64,
        held: u64,
        asked: u64,
        retry_after: Duration,
    },
    #[error("kv budget: expected a session of at most {most} bytes, found {asked}: raise --kv-budget")]
    TooLarge { most: u64, asked: u64 },
    #[error("stage: draining, takes no new work")]
    Draining,
}

impl Refusal {
    /// When it may go better; `None` where waiting does not help.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Sessions { retry_after, .. } | Self::Budget { retry_after, .. } => Some(*retry_after),
            Self::Epoch { .. } | Self::TooLarge { .. } | Self::Draining => None,
        }
    }
}

/// How long a caller waits before it asks again when nobody can say how long the work takes.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Entry<K> {
    epoch: u64,
    /// Held, or set aside for the work in progress.
    bytes: u64,
    /// `None` while it works.
    kept: Option<K>,
    leased_until: Instant,
}

/// Sessions by name, with what is kept of each.
#[derive(Debug)]
pub(crate) struct Table<K> {
    limits: Limits,
    draining: bool,
    entries: HashMap<String, Entry<K>>,
}

/// A session that may work now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<K> {
    /// What an earlier attempt left.
    pub(crate) kept: Option<K>,
    /// Sessions that had to go.
    pub(crate) evicted: Vec<String>,
}

/// What a table holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) working: usize,
    pub(crate) leased: usize,
    pub(crate) idle: usize,
    pub(crate) bytes: u64,
}

impl<K> Table<K> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            draining: false,
            entries: HashMap::new(),
        }
    }

    /// Takes no new work from now on.
    pub(crate) const fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) const fn draining(&self) -> bool {
        self.draining
    }

    /// Starts an attempt that may come to hold `bytes`. It supersedes an older attempt of the same session.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        session: &str,
        epoch: u64,
        bytes: u64,
    ) -> Result<Opened<K>, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if let Some(older) = self.entries.get(session)
            && older.epoch >= epoch
        {
            return Err(Refusal::Epoch {
                expected: older.epoch + 1,
                found: epoch,
            });
        }
        let evicted = self.make_room(now, session, bytes)?;
        let entry = Entry {
            epoch,
            bytes,
            kept: None,
            leased_until: now,
        };
        let older = self.entries.insert(session.to_owned(), entry);
        Ok(Opened {
            kept: older.and_then(|older| older.kept),
            evicted,
        })
    }

    /// Checks both limits; drops lapsed sessions, the longest lapsed first, when their room is needed.
    fn make_room(&mut self, now: Instant, session: &str, asked: u64) -> Result<Vec<String>, Refusal> {
        let Limits {
            working: most_working,
            bytes: most,
            ..
        } = self.limits;
        let others = || self.entries.iter().filter(|(name, _)| *name != session);
        if others().filter(|(_, entry)| entry.kept.is_none()).count() >= most_working {
            return Err(Refusal::Sessions {
                most: most_working,
                retry_after: RETRY,
            });
        }
        if asked > most {
            return Err(Refusal::TooLarge { most, asked });
        }
        let mut held: u64 = others().map(|(_, entry)| entry.bytes).sum();
        let lapsed = others().filter(|(_, entry)| entry.kept.is_some() && entry.leased_until <= now);
        let mut lapsed: Vec<_> = lapsed
            .map(|(name, entry)| (entry.leased_until, name.clone(), entry.bytes))
            .collect();
        lapsed.sort();
        let mut evicted = Vec::new();
        for (_, name, bytes) in lapsed {
            if held + asked <= most {
                break;
            }
            held -= bytes;
            evicted.push(name);
        }
        if held + asked > most {
            return Err(Refusal::Budget {
                most,
                held,
                asked,
                retry_after: self.next_lapse(now),
            });
        }
        evicted.iter().for_each(|name| drop(self.entries.remove(name)));
        Ok(evicted)
    }

    fn next_lapse(&self, now: Instant) -> Duration {
        let kept = self.entries.values().filter(|entry| entry.kept.is_some());
        let next = kept
            .map(|entry| entry.leased_until.saturating_duration_since(now))
            .min();
        next.map_or(RETRY, |next| next.max(Duration::from_millis(100)))
    }

    /// Whether `epoch` is the one that works in `session` now; otherwise what is.
    pub(crate) fn fence(&self, session: &str, epoch: u64) -> Result<(), Fenced> {
        match self.entries.get(session) {
            Some(entry) if entry.epoch == epoch => Ok(()),
            Some(entry) if entry.epoch > epoch && planted::is(Bug::StaleEpoch) => Ok(()),
            Some(entry) => Err(Fenced::Epoch {
                expected: entry.epoch,
                found: epoch,
            }),
            None => Err(Fenced::Unknown {
                found: session.to_owned(),
            }),
        }
    }

    /// The attempt ended well: what it made is kept under a lease. Gives it back when a newer attempt has taken over.
    #[must_use]
    pub(crate) fn keep(&mut self, now: Instant, session: &str, epoch: u64, kept: K, bytes: u64) -> Option<K> {
        let Some(entry) = self.entries.get_mut(session).filter(|entry| entry.epoch == epoch) else {
            return Some(kept);
        };
        let leased_until = now + self.limits.lease;
        *entry = Entry {
            epoch,
            bytes,
            kept: Some(kept),
            leased_until,
        };
        None
    }

    /// Forgets a session; false when that epoch is not there.
    pub(crate) fn remove(&mut self, session: &str, epoch: u64) -> bool {
        let ours = self.fence(session, epoch).is_ok();
        if ours {
            self.entries.remove(session);
        }
        ours
    }

    /// Renews leases; returns the sessions that are not held.
    pub(crate) fn renew(
        &mut self,
        now: Instant,
        sessions: impl IntoIterator<Item = (String, u64)>,
    ) -> Vec<String> {
        let lease = self.limits.lease;
        let mut lost = Vec::new();
        for (session, epoch) in sessions {
            match self.entries.get_mut(&session) {
                Some(entry) if entry.epoch == epoch => entry.leased_until = now + lease,
                _ => lost.push(session),
            }
        }
        lost
    }

    /// Drops what has been idle for too long; returns the names.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<String> {
        let idle = if self.draining {
            Duration::ZERO
        } else {
            self.limits.idle
        };
        let over = |entry: &Entry<K>| entry.kept.is_some() && entry.leased_until + idle <= now;
        let names: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| over(entry))
            .map(|(name, _)| name.clone())
            .collect();
        names.iter().for_each(|name| drop(self.entries.remove(name)));
        names
    }

    pub(crate) fn totals(&self, now: Instant) -> Totals {
        let mut totals = Totals::default();
        for entry in self.entries.values() {
            totals.bytes += entry.bytes;
            match (&entry.kept, entry.leased_until > now) {
                (None, _) => totals.working += 1,
                (Some(_), true) => totals.leased += 1,
                (Some(_), false) => totals.idle += 1,
            }
        }
        totals
    }
}

/// Why a call does not reach its session.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Fenced {
    #[error("epoch: expected {expected}, found {found}")]
    Epoch { expected: u64, found: u64 },
    #[error("session: expected an open one, found {found:?}")]
    Unknown { found: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn table() -> (Table<u32>, Instant) {
        let limits = Limits {
            working: 2,
            bytes: 100,
            lease: 10 * SECOND,
            idle: 60 * SECOND,
        };
        (Table::new(limits), Instant::now())
    }

    fn kept(table: &mut Table<u32>, now: Instant, session: &str, bytes: u64) {
        table.open(now, session, 1, bytes).expect("room");
        assert_eq!(table.keep(now, session, 1, 7, bytes), None, "ours");
    }

    #[test]
    fn a_kept_session_is_found_again_by_a_later_epoch_only() {
        let (mut table, now) = table();
        kept(&mut table, now, "a", 10);
        assert_eq!(
            table.open(now, "a", 1, 20),
            Err(Refusal::Epoch {
                expected: 2,
                found: 1
            })
        );
        assert_eq!(table.open(now, "a", 2, 20).map(|opened| opened.kept), Ok(Some(7)));
        assert_eq!(
            table.open(now, "a", 3, 20).map(|opened| opened.kept),
            Ok(None),
            "it was taken"
        );
        assert_eq!(table.keep(now, "a", 2, 8, 20), Some(8), "superseded");
        assert_eq!(
            table.fence("a", 2),
            Err(Fenced::Epoch {
                expected: 3,
                found: 2
            })
        );
        assert!(!table.remove("a", 2) && table.remove("a", 3));
        assert_eq!(table.totals(now), Totals::default());
    }

    #[test]
    fn a_leased_session_is_never_dropped_for_another() {
        let (mut table, now) = table();
        kept(&mut table, now, "a", 60);
        let refusal = table.open(now + 4 * SECOND, "b", 1, 50).expect_err("full");
        assert_eq!(
            refusal,
            Refusal::Budget {
                most: 100,
                held: 60,
                asked: 50,
                retry_after: 6 * SECOND
            }
        );
        assert_eq!(
            table.renew(now + 9 * SECOND, [("a".into(), 1), ("x".into(), 1)]),
            ["x"]
        );
        assert!(table.open(now + 11 * SECOND, "b", 1, 50).is_err(), "renewed");
        let opened = table.open(now + 19 * SECOND, "b", 1, 50).expect("lapsed");
        assert_eq!(opened.evicted, ["a"]);
    }

    #[test]
    fn the_longest_lapsed_goes_first_and_only_as_many_as_needed() {
        let (mut table, now) = table();
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            kept(
                &mut table,
                now + u32::try_from(i).expect("few") * SECOND,
                name,
                30,
            );
        }
        table.renew(now + 3 * SECOND, [("a".into(), 1)]);
        let opened = table.open(now + 20 * SECOND, "d", 1, 40).expect("room");
        assert_eq!(opened.evicted, ["b"]);
        assert_eq!(
            table.totals(now + 20 * SECOND),
            Totals {
                working: 1,
                leased: 0,
                idle: 2,
                bytes: 100
            }
        );
    }

    #[test]
    fn working_sessions_are_pinned_and_counted() {
        let (mut table, now) = table();
        table.open(now, "a", 1, 10).expect("room");
        table.open(now, "b", 1, 10).expect("room");
        assert_eq!(
            table.open(now, "c", 1, 10),
            Err(Refusal::Sessions {
                most: 2,
                retry_after: SECOND
            })
        );
        assert!(table.open(now, "a", 2, 10).is_ok(), "its own place");
        assert!(table.sweep(now + 1000 * SECOND).is_empty());
        assert_eq!(
            table.open(now, "a", 3, 101),
            Err(Refusal::TooLarge {
                most: 100,
                asked: 101
            })
        );
    }

    #[test]
    fn idle_sessions_go_in_time_and_at_once_when_draining() {
        let (mut table, now) = table();
        kept(&mut table, now, "a", 10);
        assert!(table.sweep(now + 69 * SECOND).is_empty());
        assert_eq!(table.sweep(now + 70 * SECOND), ["a"]);
        kept(&mut table, now, "b", 10);
        table.drain();
        assert!(table.sweep(now + 9 * SECOND).is_empty(), "leased");
        assert_eq!(table.sweep(now + 10 * SECOND), ["b"]);
        assert_eq!(table.open(now, "c", 1, 1), Err(Refusal::Draining));
    }
}
