//! The conditions: what holds, why, and since when. Pure.

use ds4_api::{StageStatus, condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::diagnose::Trouble;
use crate::probe::Route;
use crate::progress::{Hold, REMEDY};
use crate::status::Facts;
use crate::validate::Blocked;

/// One condition before its time is known.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

fn verdict(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict {
        kind,
        holds,
        reason,
        message: message.into(),
    }
}

/// All conditions, each with the time of its last change.
pub(crate) fn conditions(facts: &Facts<'_>, stages: &[StageStatus], answering: i32) -> Vec<Condition> {
    let waiting = waiting(facts, stages);
    let verdicts = [
        available(facts, answering),
        progressing(facts, waiting.as_deref()),
        degraded(facts, answering, waiting.as_deref()),
        model_ready(facts),
        pipeline_ready(facts, waiting.as_deref()),
        handoff_ready(facts, answering),
        failed(facts),
    ];
    verdicts
        .into_iter()
        .map(|verdict| timed(facts, verdict))
        .collect()
}

/// Stages that miss pods, for people.
fn waiting(facts: &Facts<'_>, stages: &[StageStatus]) -> Option<String> {
    let wanted = facts.deployment.spec.replicas;
    let missing: Vec<String> = stages
        .iter()
        .filter(|stage| stage.ready < wanted)
        .map(|stage| format!("{} {}/{wanted}", stage.name, stage.ready))
        .collect();
    (!missing.is_empty()).then(|| format!("waiting for {}", missing.join(", ")))
}

fn available(facts: &Facts<'_>, answering: i32) -> Verdict {
    let wanted = facts.deployment.spec.replicas;
    let holds = answering > 0;
    let reason = if holds {
        "PipelinesAnswer"
    } else {
        "NoPipelineAnswers"
    };
    verdict(
        condition::AVAILABLE,
        holds,
        reason,
        format!("{answering} of {wanted} pipelines answer"),
    )
}

fn progressing(facts: &Facts<'_>, waiting: Option<&str>) -> Verdict {
    let of = |holds, reason, message: String| verdict(condition::PROGRESSING, holds, reason, message);
    let Some(rollout) = facts.rollout else {
        let (reason, message) = facts.blocked.map_or(("Blocked", String::new()), Blocked::reason);
        return of(false, reason, message);
    };
    let remedy = "pipelines of the old revision go on serving; change the spec or go back";
    match &rollout.progress.hold {
        Some(Hold::Failed(message)) => of(
            false,
            "MaxRestartsExceeded",
            format!("{message}: more restarts than spec.failurePolicy.maxRestarts; {remedy}"),
        ),
        Some(Hold::Deadline { seconds }) => {
            let why = trouble(facts).map_or(waiting.unwrap_or("it is not ready"), |trouble| &trouble.message);
            of(
                false,
                "ProgressDeadlineExceeded",
                format!("no further pipeline became ready for {seconds} s: {why}; {remedy}"),
            )
        }
        Some(Hold::Paused) if !rollout.complete => of(
            false,
            "Paused",
            "spec.rollout.paused: no pipeline is replaced".into(),
        ),
        _ if !rollout.complete => of(true, "ReplacingPipelines", replaced(facts)),
        _ => match waiting {
            Some(waiting) => of(true, "PodsStarting", waiting.into()),
            None => of(false, "Settled", "every stage is ready".into()),
        },
    }
}

/// Nothing more is tried: pods were given up as often as the policy allows.
fn failed(facts: &Facts<'_>) -> Verdict {
    let kind = condition::FAILED;
    let failed = facts.rollout.and_then(|rollout| rollout.progress.failed.as_ref());
    match failed {
        Some(found) => verdict(kind, true, "MaxRestartsExceeded", format!("{found}{REMEDY}")),
        None => verdict(kind, false, "AsExpected", "no pod was given up"),
    }
}

fn replaced(facts: &Facts<'_>) -> String {
    let Some(rollout) = facts.rollout else {
        return String::new();
    };
    let (ready, wanted) = (rollout.new.answering(), facts.deployment.spec.replicas);
    let left: i32 = rollout.old.iter().map(|old| old.desired.max(old.occupied)).sum();
    format!(
        "{ready} of {wanted} pipelines of revision {} answer, {left} of older revisions are left",
        rollout.new.revision
    )
}

/// The trouble that explains most: of a revision that is given up, then any.
fn trouble<'a>(facts: &Facts<'a>) -> Option<&'a Trouble> {
    facts.troubles.first()
}

fn degraded(facts: &Facts<'_>, answering: i32, waiting: Option<&str>) -> Verdict {
    let wanted = facts.deployment.spec.replicas;
    let kind = condition::DEGRADED;
    if let Some(trouble) = trouble(facts) {
        return verdict(kind, true, trouble.reason, trouble.message.clone());
    }
    if answering < wanted {
        let message = format!("{answering} of {wanted} pipelines answer");
        return verdict(kind, true, "FewerThanWanted", message);
    }
    if let Some(waiting) = waiting {
        let message = format!("{waiting}; output pods answer alone meanwhile");
        return verdict(kind, true, "StagesNotReady", message);
    }
    verdict(kind, false, "AsExpected", "every stage is ready")
}

fn model_ready(facts: &Facts<'_>) -> Verdict {
    let kind = condition::MODEL_READY;
    if let Some(Blocked::Model(reason, message)) = facts.blocked {
        return verdict(kind, false, reason, message.clone());
    }
    match facts.troubles.iter().find(|trouble| trouble.is_of_the_model()) {
        Some(trouble) => verdict(kind, false, trouble.reason, trouble.message.clone()),
        None => verdict(kind, true, "SourceSupported", "the pods load the model"),
    }
}

fn pipeline_ready(facts: &Facts<'_>, waiting: Option<&str>) -> Verdict {
    let kind = condition::PIPELINE_READY;
    if let Some(blocked) = facts.blocked {
        let (reason, message) = blocked.reason();
        return verdict(kind, false, reason, message);
    }
    match (waiting, trouble(facts)) {
        (None, _) => verdict(kind, true, "AllStagesReady", "every stage is ready"),
        (Some(_), Some(trouble)) => verdict(kind, false, trouble.reason, trouble.message.clone()),
        (Some(waiting), None) => verdict(kind, false, "StagesNotReady", waiting),
    }
}

fn handoff_ready(facts: &Facts<'_>, answering: i32) -> Verdict {
    let kind = condition::HANDOFF_READY;
    let incomplete = facts.routes.iter().find_map(|report| match &report.route {
        Route::Incomplete(why) => Some(format!("pod {}: {why}", report.pod)),
        Route::Complete | Route::Unknown | Route::NoAddress => None,
    });
    if let Some(message) = incomplete {
        // Of two sides that do not go together the engine names the field and both values.
        let reason = if message.contains("expected") {
            "IncompatiblePeers"
        } else {
            "RouteIncomplete"
        };
        return verdict(kind, false, reason, message);
    }
    let unknown = facts
        .routes
        .iter()
        .filter(|report| matches!(report.route, Route::Unknown | Route::NoAddress))
        .map(|report| report.pod.as_str())
        .collect::<Vec<_>>();
    if !unknown.is_empty() {
        return verdict(
            kind,
            false,
            "RouteUnknown",
            format!("{} does not say", unknown.join(", ")),
        );
    }
    if answering == 0 {
        return verdict(kind, false, "NoRoute", "no output pod is ready");
    }
    verdict(
        kind,
        true,
        "RouteComplete",
        "every output pod reaches every stage of its pipeline",
    )
}

/// Keeps the time of the last change.
fn timed(facts: &Facts<'_>, verdict: Verdict) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = facts
        .deployment
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|before| before.type_ == verdict.kind);
    let since = before
        .filter(|before| before.status == status)
        .map_or_else(|| Time(facts.now), |before| before.last_transition_time.clone());
    Condition {
        type_: verdict.kind.into(),
        status: status.into(),
        reason: verdict.reason.into(),
        message: verdict.message,
        observed_generation: facts.deployment.metadata.generation,
        last_transition_time: since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::quickstart;
    use crate::failure::Replacements;
    use crate::observe::tests::{pod, set};
    use crate::observe::{Member, Observed};
    use crate::probe::Report;
    use crate::progress::Progress;
    use crate::rollout::complete;
    use crate::status::{Rollout, status};
    use ds4_api::{DS4Deployment, DS4DeploymentStatus, Names};
    use jiff::Timestamp;

    const UPDATE: &str = "bbbb";

    /// A deployment of one pipeline per revision with sets, its pods, and what else is known.
    struct Scene {
        deployment: DS4Deployment,
        pods: Vec<Member>,
        old: bool,
        hold: Option<Hold>,
        blocked: Option<Blocked>,
        troubles: Vec<Trouble>,
        route: Route,
        second: i64,
    }

    fn scene(ready: [bool; 3]) -> Scene {
        let stages = ["early", "middle", "output"];
        Scene {
            deployment: quickstart(),
            pods: stages
                .iter()
                .zip(ready)
                .map(|(stage, ready)| pod(stage, UPDATE, 0, ready))
                .collect(),
            old: false,
            hold: None,
            blocked: None,
            troubles: Vec::new(),
            route: Route::Complete,
            second: 1,
        }
    }

    impl Scene {
        fn status(&self) -> DS4DeploymentStatus {
            let mut sets = vec![set("output", UPDATE, 2, 1)];
            if self.old {
                sets.push(set("output", "aaaa", 1, 1));
            }
            let observed = Observed::new(&sets, self.pods.clone());
            let (old, new) = (observed.others(UPDATE), observed.generation(UPDATE));
            let now = Timestamp::from_second(self.second).expect("a time");
            let failed = match &self.hold {
                Some(Hold::Failed(found)) => Some(found.clone()),
                _ => None,
            };
            let progress = Progress {
                last: now,
                rolling: true,
                failed,
                hold: self.hold.clone(),
            };
            let complete = complete(self.deployment.spec.replicas, &old, &new);
            let rollout = Rollout {
                old: &old,
                new: &new,
                progress: &progress,
                replacements: Replacements::default(),
                complete,
            };
            status(&Facts {
                deployment: &self.deployment,
                names: &Names::new("quickstart", "llm"),
                observed: &observed,
                rollout: self.blocked.is_none().then_some(rollout),
                blocked: self.blocked.as_ref(),
                troubles: &self.troubles,
                routes: &[Report {
                    pod: "out-0".into(),
                    revision: UPDATE.into(),
                    route: self.route.clone(),
                }],
                loading: &[],
                now,
            })
        }

        fn condition(&self, kind: &str) -> (String, String, String) {
            let status = self.status();
            let found = status.conditions.iter().find(|known| known.type_ == kind);
            let found = found.expect("the condition").clone();
            (found.status, found.reason, found.message)
        }

        fn says(&self, kind: &str, status: &str, reason: &str) {
            let (found, why, message) = self.condition(kind);
            assert_eq!(
                (found.as_str(), why.as_str()),
                (status, reason),
                "{kind}: {message}"
            );
        }
    }

    #[test]
    fn a_pipeline_is_available_when_its_output_pod_answers() {
        let none = scene([true, false, false]);
        none.says(condition::AVAILABLE, "False", "NoPipelineAnswers");
        none.says(condition::PROGRESSING, "True", "PodsStarting");
        none.says(condition::DEGRADED, "True", "FewerThanWanted");
        let all = scene([true; 3]);
        all.says(condition::AVAILABLE, "True", "PipelinesAnswer");
        all.says(condition::PROGRESSING, "False", "Settled");
        all.says(condition::DEGRADED, "False", "AsExpected");
        let status = all.status();
        assert_eq!(
            (
                status.pipelines.as_deref(),
                status.ready_replicas,
                status.current_revision.as_deref()
            ),
            (Some("1/1"), 1, Some(UPDATE))
        );
    }

    #[test]
    fn a_lost_stage_degrades_and_does_not_break() {
        let lost = scene([false, true, true]);
        lost.says(condition::AVAILABLE, "True", "PipelinesAnswer");
        lost.says(condition::DEGRADED, "True", "StagesNotReady");
        lost.says(condition::PIPELINE_READY, "False", "StagesNotReady");
    }

    #[test]
    fn a_trouble_is_the_reason_wherever_it_shows() {
        let trouble = Trouble {
            reason: "ModelChecksumMismatch",
            message: "pod x: sha256: expected aa, found bb".into(),
            pod: "x".into(),
            revision: UPDATE.into(),
            given_up: false,
            ended: None,
        };
        let with = Scene {
            troubles: vec![trouble],
            ..scene([false, true, true])
        };
        for (kind, status) in [
            (condition::DEGRADED, "True"),
            (condition::MODEL_READY, "False"),
            (condition::PIPELINE_READY, "False"),
        ] {
            with.says(kind, status, "ModelChecksumMismatch");
        }
    }

    #[test]
    fn a_rollout_says_where_it_is_and_why_it_stopped() {
        let with = |hold| Scene {
            old: true,
            hold,
            ..scene([true; 3])
        };
        with(None).says(condition::PROGRESSING, "True", "ReplacingPipelines");
        with(Some(Hold::Paused)).says(condition::PROGRESSING, "False", "Paused");
        with(Some(Hold::Deadline { seconds: 60 })).says(
            condition::PROGRESSING,
            "False",
            "ProgressDeadlineExceeded",
        );
        let failed = with(Some(Hold::Failed("pod x: no".into())));
        failed.says(condition::PROGRESSING, "False", "MaxRestartsExceeded");
        let message = failed.condition(condition::PROGRESSING).2;
        assert!(
            message.starts_with("pod x: no") && message.contains("old revision"),
            "{message}"
        );
        assert_eq!(failed.status().current_revision, None, "it is not rolled out");
        failed.says(condition::FAILED, "True", "MaxRestartsExceeded");
        let message = failed.condition(condition::FAILED).2;
        assert!(
            message.starts_with("pod x: no") && message.contains("delete the pod"),
            "{message}"
        );
        with(None).says(condition::FAILED, "False", "AsExpected");
    }

    #[test]
    fn peers_that_do_not_go_together_are_told_from_a_route_that_is_not_there_yet() {
        let with = |why: &str| Scene {
            route: Route::Incomplete(why.into()),
            ..scene([true; 3])
        };
        with("stage early: model: expected 12, found 34").says(
            condition::HANDOFF_READY,
            "False",
            "IncompatiblePeers",
        );
        with("the route is connecting").says(condition::HANDOFF_READY, "False", "RouteIncomplete");
        scene([true; 3]).says(condition::HANDOFF_READY, "True", "RouteComplete");
    }

    #[test]
    fn a_blocked_model_says_why() {
        let blocked = Scene {
            blocked: Some(Blocked::Model("InvalidSource", "http is not".into())),
            ..scene([false; 3])
        };
        blocked.says(condition::MODEL_READY, "False", "InvalidSource");
        blocked.says(condition::PROGRESSING, "False", "InvalidSource");
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_does_not_change() {
        let mut later = scene([true, true, false]);
        later.deployment.status = Some(
            Scene {
                second: 5,
                ..scene([true; 3])
            }
            .status(),
        );
        later.second = 9;
        let status = later.status();
        let since = |kind: &str| {
            let known = status.conditions.iter().find(|known| known.type_ == kind);
            known.map(|known| known.last_transition_time.0.as_second())
        };
        assert_eq!(
            (since(condition::MODEL_READY), since(condition::AVAILABLE)),
            (Some(5), Some(9))
        );
    }
}
