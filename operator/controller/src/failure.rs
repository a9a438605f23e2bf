//! What becomes of pods that were given up: replaced after a while, or kept to be looked at. Pure: the clock comes in as a value.

use ds4_api::{DS4DeploymentStatus, FailurePolicy};
use jiff::Timestamp;

use crate::diagnose::Trouble;

/// Replacements of the update revision so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replacements {
    pub(crate) count: i32,
    pub(crate) last: Option<Timestamp>,
}

impl Replacements {
    /// As the status tells; another revision starts anew.
    pub(crate) fn read(before: Option<&DS4DeploymentStatus>, revision: &str) -> Self {
        before
            .filter(|before| before.update_revision.as_deref() == Some(revision))
            .map(|before| Self {
                count: before.replacements,
                last: before.last_replacement.as_ref().map(|time| time.0),
            })
            .unwrap_or_default()
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No pod was given up.
    Fine,
    /// Some were, and wait for their replacement so many seconds longer.
    Wait(u64),
    /// These pods are replaced now.
    Replace(Vec<String>),
    /// They stay: the policy allows no further replacement.
    Failed(String),
}

/// Judges the pods of the update revision.
pub(crate) fn judge(
    policy: &FailurePolicy,
    so_far: Replacements,
    troubles: &[Trouble],
    revision: &str,
    now: Timestamp,
) -> Verdict {
    let given_up = || {
        troubles
            .iter()
            .filter(|trouble| trouble.given_up && trouble.revision == revision)
    };
    let Some(first) = given_up().next() else {
        return Verdict::Fine;
    };
    if so_far.count >= policy.max_replacements {
        return Verdict::Failed(first.message.clone());
    }
    let ended = given_up().filter_map(|trouble| trouble.ended).min();
    let since = so_far.last.max(ended).unwrap_or(now);
    let due = since.as_second() + policy.backoff.after(so_far.count);
    match u64::try_from(due - now.as_second()) {
        Ok(left) if left > 0 => Verdict::Wait(left),
        _ => Verdict::Replace(given_up().map(|trouble| trouble.pod.clone()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn trouble(revision: &str, given_up: bool) -> Trouble {
        Trouble {
            reason: "ContainerFailed",
            message: "pod x: no".into(),
            pod: "x".into(),
            revision: revision.into(),
            given_up,
            ended: Some(at(100)),
        }
    }

    fn of(count: i32, last: Option<i64>, troubles: &[Trouble], now: i64) -> Verdict {
        let policy = FailurePolicy {
            max_replacements: 2,
            ..FailurePolicy::default()
        };
        let so_far = Replacements {
            count,
            last: last.map(at),
        };
        judge(&policy, so_far, troubles, "b", at(now))
    }

    #[test]
    fn a_pod_is_replaced_later_and_later_and_then_kept() {
        let down = [trouble("b", true)];
        assert_eq!(of(0, None, &down, 103), Verdict::Wait(7));
        assert_eq!(of(0, None, &down, 110), Verdict::Replace(vec!["x".into()]));
        assert_eq!(
            of(1, Some(95), &down, 110),
            Verdict::Wait(10),
            "from the pod's end on"
        );
        assert_eq!(
            of(1, Some(115), &down, 120),
            Verdict::Wait(15),
            "or from the last replacement"
        );
        assert_eq!(of(2, Some(115), &down, 999), Verdict::Failed("pod x: no".into()));
    }

    #[test]
    fn pods_of_other_revisions_and_those_that_still_restart_are_left_alone() {
        assert_eq!(
            of(0, None, &[trouble("a", true), trouble("b", false)], 999),
            Verdict::Fine
        );
    }

    #[test]
    fn another_revision_starts_anew() {
        let before = DS4DeploymentStatus {
            update_revision: Some("a".into()),
            replacements: 2,
            ..DS4DeploymentStatus::default()
        };
        assert_eq!(Replacements::read(Some(&before), "a").count, 2);
        assert_eq!(Replacements::read(Some(&before), "b"), Replacements::default());
        assert_eq!(Replacements::read(None, "b"), Replacements::default());
    }
}
