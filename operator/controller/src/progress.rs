//! Whether a rollout gets on, and when it is stopped. Pure: the clock comes in as a value.

use ds4_api::{DS4Deployment, DS4DeploymentSpec, condition};
use jiff::Timestamp;

use crate::failure::Verdict;
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
    /// Pods of the new revision were given up and are not replaced: what was found.
    pub(crate) failed: Option<String>,
    pub(crate) hold: Option<Hold>,
}

/// Judges a rollout by what the status said before. A revision that failed has failed until the spec changes or the pod that was restarted
/// so often is gone: one that comes up for a moment between two crashes must not push out pods that serve.
pub(crate) fn progress(
    deployment: &DS4Deployment,
    new: &Generation,
    failure: &Verdict,
    restarts: i32,
    now: Timestamp,
) -> Progress {
    let (spec, before) = (&deployment.spec, deployment.status.as_ref());
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
    let worn = restarts > spec.failure_policy.max_restarts;
    let failed = match failure {
        Verdict::Failed(message) => Some(message.clone()),
        _ => said_failed(deployment).filter(|_| same.is_some() && worn),
    };
    let hold = match &failed {
        Some(message) if rolling => Some(Hold::Failed(message.clone())),
        _ if rolling && late => Some(Hold::Deadline { seconds: deadline }),
        _ if spec.rollout.paused => Some(Hold::Paused),
        _ => None,
    };
    Progress {
        last,
        rolling,
        failed,
        hold,
    }
}

/// What the status says of a failure, for the spec as it is now.
fn said_failed(deployment: &DS4Deployment) -> Option<String> {
    let conditions = deployment.status.iter().flat_map(|status| &status.conditions);
    let mut failed = conditions.filter(|known| known.type_ == condition::FAILED && known.status == "True");
    let known = failed.next()?;
    let current = known.observed_generation == deployment.metadata.generation;
    current.then(|| known.message.split(REMEDY).next().unwrap_or_default().to_owned())
}

/// What follows what was found in the message of `Failed`.
pub(crate) const REMEDY: &str =
    ": given up, and kept to be looked at; correct the cause, then change the spec or delete the pod";

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
    use ds4_api::DS4DeploymentStatus;
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

    fn of(
        before: Option<DS4DeploymentStatus>,
        ready: &[bool],
        failure: &Verdict,
        restarts: i32,
        now: i64,
    ) -> Progress {
        let mut deployment = quickstart();
        deployment.spec.rollout.progress_deadline_seconds = 60;
        deployment.status = before;
        progress(&deployment, &new(ready), failure, restarts, at(now))
    }

    #[test]
    fn the_clock_starts_anew_with_a_revision_and_with_every_pipeline_that_gets_ready() {
        let last = |before, ready: &[bool]| of(before, ready, &Verdict::Fine, 0, 100).last.as_second();
        assert_eq!(last(None, &[]), 100);
        assert_eq!(last(Some(before("aaaa", 1, 40)), &[true]), 40);
        assert_eq!(last(Some(before("aaaa", 1, 40)), &[true, true]), 100);
    }

    #[test]
    fn a_rollout_that_does_not_get_on_is_stopped_and_one_that_was_done_is_not() {
        let hold = |current: &str, now: i64| {
            of(
                Some(before(current, 1, 40)),
                &[true, false],
                &Verdict::Fine,
                0,
                now,
            )
            .hold
        };
        assert_eq!(hold("aaaa", 99), None);
        assert_eq!(hold("aaaa", 100), Some(Hold::Deadline { seconds: 60 }));
        assert_eq!(hold("bbbb", 1000), None);
        let mut spec = quickstart().spec;
        spec.rollout.progress_deadline_seconds = 60;
        let waiting = of(Some(before("aaaa", 1, 40)), &[true], &Verdict::Fine, 0, 70);
        assert_eq!(waiting.due(&spec, at(70)), Some(30));
    }

    #[test]
    fn a_revision_that_failed_is_held_while_it_rolls_out_and_told_when_it_serves() {
        let failed = Verdict::Failed("pod x: no".into());
        let of = |current: &str| of(Some(before(current, 0, 40)), &[false], &failed, 9, 50);
        assert_eq!(of("aaaa").hold, Some(Hold::Failed("pod x: no".into())));
        assert_eq!(
            (of("bbbb").hold, of("bbbb").failed),
            (None, Some("pod x: no".into()))
        );
    }

    #[test]
    fn a_pod_that_comes_up_between_two_crashes_does_not_let_the_rollout_go_on() {
        let with = |generation: i64, restarts: i32| {
            let mut status = before("aaaa", 0, 40);
            status.conditions = vec![
                serde_json::from_value(serde_json::json!({
                    "type": condition::FAILED, "status": "True", "reason": "MaxRestartsExceeded", "message": format!("pod x: no{REMEDY}"),
                    "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}))
                .expect("a condition"),
            ];
            let mut deployment = quickstart();
            deployment.metadata.generation = Some(3);
            deployment.status = Some(status);
            progress(&deployment, &new(&[true]), &Verdict::Fine, restarts, at(50)).failed
        };
        assert_eq!(with(3, 6).as_deref(), Some("pod x: no"));
        assert_eq!(with(2, 6), None, "the spec has changed");
        assert_eq!(with(3, 0), None, "the pod is another one");
    }
}
