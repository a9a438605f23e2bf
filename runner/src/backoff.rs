//! How long something that failed waits. Pure.

use std::time::Duration;

/// First wait after a second failure, and longest (the kubelet's CrashLoopBackOff).
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// What ran so long had recovered: its next failure is a first one again.
const RECOVERED: Duration = Duration::from_secs(600);

/// Counts failures in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait now that it has failed after running for `ran`: the first time not at all.
    pub(crate) fn failed(&mut self, ran: Duration) -> Duration {
        if ran >= RECOVERED {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            failures => FIRST.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST),
        };
        self.failures += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes_and_begin_anew_after_ten() {
        let mut backoff = Backoff::default();
        let mut waits = |ran: u64| backoff.failed(Duration::from_secs(ran)).as_secs();
        let seen: Vec<u64> = (0..8).map(|_| waits(1)).collect();
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!((waits(600), waits(599)), (0, 10));
    }
}
