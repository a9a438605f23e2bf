//! Whether a rollout gets on, and when it is stopped. Pure: the clock comes in as a value.

use ds4_api::{DS4DeploymentSpec, DS4DeploymentStatus};
use jiff::Timestamp;

use crate::diagnose::Trouble;
use crate::rollout::Generation;

/// Why no pipeline is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The user said so.
    Paused,
    /// No further pipeline became ready in time.
    Deadline {
        /// The deadline, in seconds.
        seconds: i32,
    },
    /// The new revision fails again and again: what was found last.
    Failed(String),
}

/// Where a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// When a pipeline of the new revision became ready last, or the rollout began.
    pub(crate) last: Timestamp,
    /// Whether the new revision has yet to be rolled out once.
    pub(crate) rolling: bool,
    pub(crate) hold: Option<Hold>,
}

/// Judges a rollout by what the status said before.
pub(crate) fn progress(
    spec: &DS4DeploymentSpec,
    before: Option<&DS4DeploymentStatus>,
    new: &Generation,
    troubles: &[Trouble],
    now: Timestamp,
) -> Progress {
    let is = |revision: &Option<String>| revision.as_deref() == Some(new.revision.as_str());
    let same = before.filter(|before| is(&before.update_revision));
    let went_on = same.is_none_or(|before| new.answering() > before.updated_replicas);
    let last = same
        .and_then(|before| before.last_progress.as_ref())
        .filter(|_| !went_on)
        .map_or(now, |time| time.0);
    let rolling = !before.is_some_and(|before| is(&before.current_revision));
    let deadline = spec.rollout.progress_deadline_seconds;
    let late = now.as_second() - last.as_second() >= i64::from(deadline);
    let given_up = troubles
        .iter()
        .find(|trouble| trouble.given_up && trouble.revision == new.revision);
    let hold = match given_up {
        Some(trouble) if rolling => Some(Hold::Failed(trouble.message.clone())),
        _ if rolling && late => Some(Hold::Deadline { seconds: deadline }),
        _ if spec.rollout.paused => Some(Hold::Paused),
        _ => None,
    };
    Progress { last, rolling, hold }
}

impl Progress {
    /// Whether the operator stopped the rollout on its own.
    pub(crate) const fn stopped(&self) -> bool {
        matches!(self.hold, Some(Hold::Deadline { .. } | Hold::Failed(_)))
    }

    /// Seconds until the deadline has to be looked at.
    pub(crate) fn due(&self, spec: &DS4DeploymentSpec, now: Timestamp) -> Option<u64> {
        let passed = now.as_second() - self.last.as_second();
        let left = i64::from(spec.rollout.progress_deadline_seconds) - passed;
        u64::try_from(left).ok().filter(|left| self.rolling && *left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::quickstart;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn new(ready: &[bool]) -> Generation {
        Generation {
            revision: "bbbb".into(),
            ready: ready.to_vec(),
            ..Generation::default()
        }
    }

    fn before(current: &str, updated: i32, second: i64) -> DS4DeploymentStatus {
        DS4DeploymentStatus {
            current_revision: Some(current.into()),
            update_revision: Some("bbbb".into()),
            updated_replicas: updated,
            last_progress: Some(Time(at(second))),
            ..DS4DeploymentStatus::default()
        }
    }

    #[test]
    fn the_clock_starts_anew_with_a_revision_and_with_every_pipeline_that_gets_ready() {
        let spec = quickstart().spec;
        let of = |before: Option<&DS4DeploymentStatus>, ready: &[bool]| {
            progress(&spec, before, &new(ready), &[], at(100))
                .last
                .as_second()
        };
        assert_eq!(of(None, &[]), 100);
        assert_eq!(of(Some(&before("aaaa", 1, 40)), &[true]), 40);
        assert_eq!(of(Some(&before("aaaa", 1, 40)), &[true, true]), 100);
    }

    #[test]
    fn a_rollout_that_does_not_get_on_is_stopped_and_one_that_was_done_is_not() {
        let mut spec = quickstart().spec;
        spec.rollout.progress_deadline_seconds = 60;
        let hold = |current: &str, now: i64| {
            progress(
                &spec,
                Some(&before(current, 1, 40)),
                &new(&[true, false]),
                &[],
                at(now),
            )
            .hold
        };
        assert_eq!(hold("aaaa", 99), None);
        assert_eq!(hold("aaaa", 100), Some(Hold::Deadline { seconds: 60 }));
        assert_eq!(hold("bbbb", 1000), None);
        let waiting = progress(&spec, Some(&before("aaaa", 1, 40)), &new(&[true]), &[], at(70));
        assert_eq!(waiting.due(&spec, at(70)), Some(30));
    }

    #[test]
    fn a_revision_that_was_given_up_stops_its_own_rollout_only() {
        let spec = quickstart().spec;
        let trouble = |revision: &str| Trouble {
            reason: "ModelInvalid",
            message: "pod x: no".into(),
            revision: revision.into(),
            given_up: true,
        };
        let hold = |trouble| {
            progress(
                &spec,
                Some(&before("aaaa", 0, 40)),
                &new(&[false]),
                &[trouble],
                at(50),
            )
            .hold
        };
        assert_eq!(hold(trouble("bbbb")), Some(Hold::Failed("pod x: no".into())));
        assert_eq!(hold(trouble("aaaa")), None);
    }
}
