//! What the resource says about itself. Pure: the clock comes in as a value.

use ds4_api::{DS4Deployment, DS4DeploymentStatus, LABEL_NAME, LABEL_ROLE, Names, StageStatus, condition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::observe::Observed;
use crate::validate::Blocked;

/// What a status is made of.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) deployment: &'a DS4Deployment,
    pub(crate) names: &'a Names,
    pub(crate) observed: &'a Observed,
    /// Revision of the templates; none while blocked.
    pub(crate) revision: Option<&'a str>,
    pub(crate) blocked: Option<&'a Blocked>,
    pub(crate) now: Timestamp,
}

/// One condition before its time is known.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The status of a deployment.
pub(crate) fn status(facts: &Facts<'_>) -> DS4DeploymentStatus {
    let Facts {
        deployment,
        names,
        observed,
        revision,
        blocked: _,
        now: _,
    } = facts;
    let stages = deployment.spec.pipeline.ordered();
    let all: Vec<StageStatus> = stages
        .iter()
        .map(|stage| StageStatus {
            name: stage.name.clone(),
            layers: stage.layers.argument(),
            backend: format!("{:?}", stage.backend),
            ready: observed.pods(names, &stage.name).ready,
        })
        .collect();
    let output = stages
        .last()
        .map(|stage| observed.pods(names, &stage.name))
        .unwrap_or_default();
    DS4DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: output.existing,
        ready_replicas: output.ready,
        pipelines: Some(format!("{}/{}", output.ready, deployment.spec.replicas)),
        selector: Some(format!("{LABEL_NAME}={},{LABEL_ROLE}=output", names.name())),
        current_revision: revision.map(str::to_owned),
        url: Some(names.url(deployment.spec.server.port)),
        conditions: verdicts(facts, &all, output.ready)
            .into_iter()
            .map(|verdict| timed(facts, verdict))
            .collect(),
        stages: all,
    }
}

fn verdicts(facts: &Facts<'_>, stages: &[StageStatus], answering: i32) -> Vec<Verdict> {
    let wanted = facts.deployment.spec.replicas;
    let (model_blocked, pipeline_blocked) = match facts.blocked {
        Some(Blocked::Model(reason, message)) => (Some((*reason, message.clone())), None),
        Some(Blocked::Pipeline(reason, message)) => (None, Some((*reason, message.clone()))),
        None => (None, None),
    };
    let waiting: Vec<String> = stages
        .iter()
        .filter(|stage| stage.ready < wanted)
        .map(|stage| format!("{} {}/{wanted}", stage.name, stage.ready))
        .collect();
    let updating = facts.deployment.spec.pipeline.stages.iter().any(|stage| {
        let pods = facts.observed.pods(facts.names, &stage.name);
        pods.existing != wanted || pods.updated != wanted
    });
    let complete = waiting.is_empty();
    let waiting = if complete {
        "every stage is ready".to_owned()
    } else {
        format!("waiting for {}", waiting.join(", "))
    };
    let verdict = |kind, holds, good: &'static str, bad: &'static str, message: String| Verdict {
        kind,
        holds,
        reason: if holds { good } else { bad },
        message,
    };
    let blocked = facts.blocked.is_some();
    let pipeline = match pipeline_blocked {
        Some((reason, message)) => verdict(
            condition::PIPELINE_READY,
            false,
            "AllStagesReady",
            reason,
            message,
        ),
        None => verdict(
            condition::PIPELINE_READY,
            complete && !blocked,
            "AllStagesReady",
            "StagesNotReady",
            waiting.clone(),
        ),
    };
    let model = match model_blocked {
        Some((reason, message)) => verdict(condition::MODEL_READY, false, "SourceSupported", reason, message),
        None => verdict(
            condition::MODEL_READY,
            true,
            "SourceSupported",
            "SourceNotSupportedYet",
            "the pods load the model".into(),
        ),
    };
    let answers = format!("{answering} of {wanted} pipelines answer");
    vec![
        verdict(
            condition::AVAILABLE,
            answering > 0,
            "PipelinesAnswer",
            "NoPipelineAnswers",
            answers.clone(),
        ),
        verdict(
            condition::PROGRESSING,
            !blocked && (updating || !complete),
            "PodsChanging",
            "Settled",
            waiting,
        ),
        verdict(
            condition::DEGRADED,
            answering < wanted,
            "FewerThanWanted",
            "AllAnswer",
            answers.clone(),
        ),
        model,
        pipeline,
        verdict(
            condition::HANDOFF_READY,
            answering > 0,
            "RouteComplete",
            "NoRoute",
            format!("{answers}; an output pod answers once its route was complete"),
        ),
    ]
}

/// Keeps the time of the last change.
fn timed(facts: &Facts<'_>, verdict: Verdict) -> Condition {
    let Verdict {
        kind,
        holds,
        reason,
        message,
    } = verdict;
    let status = if holds { "True" } else { "False" };
    let before = facts
        .deployment
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|before| before.type_ == kind);
    let since = before
        .filter(|before| before.status == status)
        .map_or_else(|| Time(facts.now), |before| before.last_transition_time.clone());
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: facts.deployment.metadata.generation,
        last_transition_time: since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::quickstart;
    use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
    use kube::api::ObjectMeta;

    fn set(stage: &str, ready: i32) -> StatefulSet {
        StatefulSet {
            metadata: ObjectMeta {
                name: Some(format!("quickstart-{stage}")),
                ..ObjectMeta::default()
            },
            status: Some(StatefulSetStatus {
                replicas: 1,
                ready_replicas: Some(ready),
                updated_replicas: Some(1),
                ..StatefulSetStatus::default()
            }),
            ..StatefulSet::default()
        }
    }

    fn of(
        deployment: &DS4Deployment,
        ready: [i32; 3],
        blocked: Option<&Blocked>,
        second: i64,
    ) -> DS4DeploymentStatus {
        let sets = ["early", "middle", "output"]
            .iter()
            .zip(ready)
            .map(|(stage, ready)| set(stage, ready))
            .collect();
        let (names, observed) = (Names::new("quickstart", "llm"), Observed::new(sets));
        let now = Timestamp::from_second(second).expect("a time");
        status(&Facts {
            deployment,
            names: &names,
            observed: &observed,
            revision: Some("abc"),
            blocked,
            now,
        })
    }

    fn holds(status: &DS4DeploymentStatus, kind: &str) -> bool {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    }

    #[test]
    fn a_pipeline_is_available_when_its_output_pod_answers() {
        let deployment = quickstart();
        let none = of(&deployment, [1, 0, 0], None, 1);
        assert!(
            !holds(&none, condition::AVAILABLE)
                && holds(&none, condition::DEGRADED)
                && holds(&none, condition::PROGRESSING)
        );
        let all = of(&deployment, [1, 1, 1], None, 1);
        assert!(
            holds(&all, condition::AVAILABLE)
                && holds(&all, condition::PIPELINE_READY)
                && !holds(&all, condition::DEGRADED)
        );
        assert_eq!((all.pipelines.as_deref(), all.ready_replicas), (Some("1/1"), 1));
        let degraded = of(&deployment, [0, 1, 1], None, 1);
        assert!(holds(&degraded, condition::AVAILABLE) && !holds(&degraded, condition::PIPELINE_READY));
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_does_not_change() {
        let mut deployment = quickstart();
        deployment.status = Some(of(&deployment, [1, 1, 1], None, 5));
        let later = of(&deployment, [1, 1, 0], None, 9);
        let since = |kind: &str| {
            later
                .conditions
                .iter()
                .find(|condition| condition.type_ == kind)
                .map(|condition| condition.last_transition_time.0.as_second())
        };
        assert_eq!(
            (since(condition::MODEL_READY), since(condition::AVAILABLE)),
            (Some(5), Some(9))
        );
    }

    #[test]
    fn a_blocked_model_says_why() {
        let blocked = Blocked::Model("SourceNotSupportedYet", "http is not".into());
        let status = of(&quickstart(), [0, 0, 0], Some(&blocked), 1);
        let model = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == condition::MODEL_READY)
            .expect("there");
        assert_eq!(
            (
                model.status.as_str(),
                model.reason.as_str(),
                model.message.as_str()
            ),
            ("False", "SourceNotSupportedYet", "http is not")
        );
        assert!(!holds(&status, condition::PROGRESSING));
    }
}
