//! When to try again: later and later, and not all at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use ds4_api::DS4Deployment;
use kube::ResourceExt;

/// The first retry comes after this.
const FIRST: Duration = Duration::from_secs(1);
/// No retry comes later than this.
const LONGEST: Duration = Duration::from_secs(60);

/// Failures in a row, by deployment.
#[derive(Debug, Default)]
pub(crate) struct Retries(Mutex<HashMap<String, u32>>);

impl Retries {
    /// Counts a failure; returns when to try again.
    pub(crate) fn after(&self, deployment: &DS4Deployment) -> Duration {
        let mut failures = self.lock();
        let count = failures.entry(key(deployment)).or_insert(0);
        *count += 1;
        spread(delay(*count))
    }

    /// It went well.
    pub(crate) fn forget(&self, deployment: &DS4Deployment) {
        self.lock().remove(&key(deployment));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        // A panic elsewhere leaves a count, which is as good as any.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn key(deployment: &DS4Deployment) -> String {
    deployment.uid().unwrap_or_default()
}

/// Doubles with every failure.
fn delay(failures: u32) -> Duration {
    FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST)
}

/// Up to a fifth earlier or later: what failed together does not come back together.
pub(crate) fn spread(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_later_and_later_up_to_a_minute() {
        let seconds: Vec<u64> = [1, 2, 3, 6, 7, 60].map(|n| delay(n).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 32, 60, 60]);
        let spread = spread(Duration::from_secs(10)).as_secs_f64();
        assert!((8.0..12.0).contains(&spread));
    }
}
