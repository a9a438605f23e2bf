//! How pipelines are replaced, and when one is given up.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pipelines of one revision give way to those of the next. A pipeline is replaced as a whole: its output pod leaves first and
/// finishes what it is doing, then its stages leave, then the new pipeline starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.maxUnavailable > 0 || self.maxSurge > 0",
    "spec.rollout: maxUnavailable and maxSurge are both 0: no pipeline could ever be replaced"
))]
pub struct Rollout {
    /// Pipelines that may be missing while others are replaced.
    #[serde(default = "default_unavailable")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_unavailable: i32,
    /// Pipelines beyond `replicas` that may exist while others are replaced: new ones are then built beside the old ones.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub max_surge: i32,
    /// Longest time a leaving output pod may take to finish its requests, in seconds.
    #[serde(default = "default_drain")]
    #[schemars(range(min = 1, max = 86400))]
    pub drain_timeout_seconds: i32,
    /// Longest time without a further pipeline becoming ready, in seconds; after it the rollout stops and what is left of the old
    /// revision goes on serving.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: i32,
    /// Stops replacing pipelines.
    #[serde(default)]
    pub paused: bool,
    /// Old revisions that are kept, with no pods, to go back to.
    #[serde(default = "default_history")]
    #[schemars(range(min = 0, max = 20))]
    pub revision_history_limit: i32,
}

const fn default_unavailable() -> i32 {
    1
}

const fn default_drain() -> i32 {
    300
}

/// Half an hour for a large file from a slow disk, and half of that again.
const fn default_deadline() -> i32 {
    2700
}

const fn default_history() -> i32 {
    5
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_unavailable: default_unavailable(),
            max_surge: 0,
            drain_timeout_seconds: default_drain(),
            progress_deadline_seconds: default_deadline(),
            paused: false,
            revision_history_limit: default_history(),
        }
    }
}

/// When a pod that does not come up is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FailurePolicy {
    /// Restarts of a container that is not ready, each after less than ten minutes, before its pod is given up. Between them the node waits
    /// 10 s, 20 s, 40 s and so on up to 5 minutes.
    #[schemars(range(min = 0, max = 1000))]
    pub max_restarts: i32,
    /// How often pods that were given up are replaced by fresh ones, which may come up on other nodes. After that the deployment has
    /// failed: no pipeline is replaced any more, and the pods stay to be looked at.
    #[schemars(range(min = 0, max = 100))]
    pub max_replacements: i32,
    /// How long a pod that was given up waits for its replacement.
    pub backoff: Backoff,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            max_replacements: 0,
            backoff: Backoff::default(),
        }
    }
}

/// Waiting times that double with every replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.baseSeconds <= self.maxSeconds",
    "spec.failurePolicy.backoff: baseSeconds must not be greater than maxSeconds"
))]
pub struct Backoff {
    /// Before the first replacement, in seconds.
    #[serde(default = "default_base")]
    #[schemars(range(min = 1, max = 3600))]
    pub base_seconds: i32,
    /// The longest, in seconds.
    #[serde(default = "default_longest")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_seconds: i32,
}

/// The kubelet's own numbers for containers.
const fn default_base() -> i32 {
    10
}

const fn default_longest() -> i32 {
    300
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base_seconds: default_base(),
            max_seconds: default_longest(),
        }
    }
}

impl Backoff {
    /// Seconds before the next replacement, after so many.
    #[must_use]
    pub fn after(self, replacements: i32) -> i64 {
        let doubled = i64::from(self.base_seconds) << replacements.clamp(0, 20);
        doubled.min(i64::from(self.max_seconds))
    }
}

/// What a drained node may take at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Disruption {
    /// Pods of the deployment that may be evicted at once.
    #[schemars(range(min = 0, max = 1000))]
    pub max_unavailable: i32,
}

impl Default for Disruption {
    fn default() -> Self {
        Self { max_unavailable: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;

    #[test]
    fn waiting_times_double_up_to_the_longest() {
        let times = [0, 1, 2, 5, 1000].map(|count| Backoff::default().after(count));
        assert_eq!(times, [10, 20, 40, 300, 300]);
    }
}
