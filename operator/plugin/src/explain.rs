//! `kubectl ds4 explain`: why a deployment is not ready. Conditions first, then pods, then warnings that nothing else explains.

use std::fmt::Write;

use ds4_api::condition;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;

use crate::cluster::View;
use crate::facts;
use crate::remedies::remedy;

/// Lines of a container's last words that are shown.
const WORDS: usize = 3;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it is about.
    pub(crate) about: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Finding {
    fn new(about: impl Into<String>, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            about: about.into(),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Everything that keeps a deployment from being whole; nothing when it is.
pub(crate) fn findings(view: &View, events: &[Event]) -> Vec<Finding> {
    let mut all = of_conditions(view);
    all.extend(view.pods.iter().flat_map(of_pod));
    all.extend(missing(view));
    if !all.is_empty() {
        let unexplained = events.iter().filter_map(of_event).filter(|event| {
            !all.iter()
                .any(|known| known.reason == event.reason && known.about == event.about)
        });
        let unexplained: Vec<Finding> = unexplained.collect();
        all.extend(unexplained);
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|finding| seen.insert((finding.about.clone(), finding.reason.clone())));
    all
}

/// Conditions that are not as they should be. `Degraded` is good when false, the others when true; `Progressing` is neither.
fn of_conditions(view: &View) -> Vec<Finding> {
    let Some(status) = &view.deployment.status else {
        let message = "the operator has not looked at it: is it running? (kubectl get deployments -A -l app.kubernetes.io/name=ds4-operator)";
        return vec![Finding::new("deployment", "NotObserved", message)];
    };
    let mut findings = Vec::new();
    if status.observed_generation < view.deployment.metadata.generation {
        let message = "the status is of an older spec: the operator is behind, or not running";
        findings.push(Finding::new("deployment", "NotObserved", message));
    }
    let bad = status
        .conditions
        .iter()
        .filter(|known| match known.type_.as_str() {
            condition::DEGRADED | condition::FAILED => known.status == "True",
            condition::PROGRESSING => known.reason == "ProgressDeadlineExceeded",
            _ => known.status == "False",
        });
    findings.extend(bad.map(|known| {
        Finding::new(
            format!("condition {}={}", known.type_, known.status),
            &known.reason,
            &known.message,
        )
    }));
    findings
}

fn of_pod(pod: &Pod) -> Vec<Finding> {
    let about = format!("pod {}", pod.name_any());
    if facts::ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    if let Some(message) = facts::unscheduled(pod) {
        return vec![Finding::new(about, "Unschedulable", message)];
    }
    let evicted = pod.status.iter().filter_map(|status| {
        Some((
            status.reason.as_deref()?,
            status.message.as_deref().unwrap_or_default(),
        ))
    });
    let mut found: Vec<Finding> = evicted
        .map(|(reason, message)| Finding::new(&about, reason, message))
        .collect();
    for container in facts::containers(pod) {
        let about = format!("{about}, container {}", container.name);
        let waiting = facts::waiting(container)
            .filter(|(reason, _)| !matches!(*reason, "PodInitializing" | "ContainerCreating"));
        if let Some((reason, message)) = waiting {
            found.push(Finding::new(&about, reason, message));
        }
        if let Some((reason, code, words)) = facts::ended(container) {
            let restarts = container.restart_count;
            found.push(Finding::new(
                &about,
                reason,
                format!("ended with {code}, {restarts} restarts{}", last(words)),
            ));
        }
    }
    if found.is_empty() {
        found.push(Finding::new(
            about,
            "NotReadyYet",
            format!("{} on {}", facts::state(pod), facts::node(pod)),
        ));
    }
    found
}

fn last(words: &str) -> String {
    let lines: Vec<&str> = words.lines().rev().take(WORDS).collect();
    lines
        .iter()
        .rev()
        .fold(String::new(), |text, line| format!("{text}\n      | {line}"))
}

/// Stages that have no pod at all.
fn missing(view: &View) -> Vec<Finding> {
    let stages = &view.deployment.spec.pipeline.stages;
    let without = stages.iter().filter(|stage| {
        view.deployment.spec.replicas > 0 && !view.pods.iter().any(|pod| facts::stage(pod) == stage.name)
    });
    without
        .map(|stage| {
            Finding::new(
                format!("stage {}", stage.name),
                "NoPod",
                "no pod exists: quota, admission webhook or the operator itself",
            )
        })
        .collect()
}

fn of_event(event: &Event) -> Option<Finding> {
    let kind = event.involved_object.kind.clone()?.to_lowercase();
    let about = format!("{kind} {}", event.involved_object.name.clone()?);
    let times = event
        .count
        .filter(|count| *count > 1)
        .map_or_else(String::new, |count| format!(" ({count} times)"));
    Some(Finding::new(
        about,
        event.reason.clone()?,
        format!("{}{times}", event.message.clone().unwrap_or_default()),
    ))
}

/// The findings for people.
pub(crate) fn render(view: &View, findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("{}: nothing is wrong\n", view.path());
    }
    let mut text = format!("{}: {} findings\n", view.path(), findings.len());
    for finding in findings {
        let _ = writeln!(
            text,
            "\n  {}  {}\n    {}",
            finding.reason, finding.about, finding.message
        );
        if let Some(remedy) = remedy(&finding.reason) {
            let _ = writeln!(text, "    -> {remedy}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::joined;
    use crate::status::tests::{container, deployment, pod, ready};
    use serde_json::{Value, json};

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn good() -> Value {
        json!({"observedGeneration": 1, "conditions": [condition("Available", "True", "x"), condition("Degraded", "False", "x"), condition("Progressing", "False", "x")]})
    }

    fn view(status: Value, pods: Vec<Pod>) -> View {
        joined(vec![deployment(status)], pods).remove(0)
    }

    #[test]
    fn a_whole_deployment_has_no_findings() {
        let all = vec![pod("early", 0, ready()), pod("output", 0, ready())];
        let noise: Event = serde_json::from_value(json!({"metadata": {}, "involvedObject": {"kind": "Pod", "name": "flash-early-7c9f-0"}, "reason": "Unhealthy", "message": "old"})).expect("an event");
        let view = view(good(), all);
        assert_eq!(findings(&view, &[noise]), []);
        assert_eq!(render(&view, &[]), "llm/flash: nothing is wrong\n");
    }

    #[test]
    fn a_crash_shows_its_last_words_and_a_remedy() {
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "one\ntwo\nthree\nds4: sha256: expected a, found b"}});
        let status = json!({"containerStatuses": [container("ds4", 4, json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}), ended)]});
        let view = view(good(), vec![pod("early", 0, status), pod("output", 0, ready())]);
        let text = render(&view, &findings(&view, &[]));
        assert!(
            text.contains("CrashLoopBackOff  pod flash-early-7c9f-0, container ds4"),
            "{text}"
        );
        assert!(text.contains("ended with 1, 4 restarts\n      | two\n      | three\n      | ds4: sha256: expected a, found b"), "{text}");
        assert!(text.contains("-> the last words below say why"), "{text}");
    }

    #[test]
    fn conditions_missing_pods_and_unscheduled_pods_are_found() {
        let status = json!({"observedGeneration": 1, "conditions": [condition("Available", "False", "NoPipelineAnswers"), condition("Degraded", "True", "FewerThanWanted"), condition("ModelReady", "True", "x")]});
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]});
        let event: Event = serde_json::from_value(json!({"metadata": {}, "involvedObject": {"kind": "DS4Deployment", "name": "flash"}, "reason": "FailedCreate", "message": "quota", "count": 3})).expect("an event");
        let view = view(status, vec![pod("early", 0, unscheduled)]);
        let found = findings(&view, &[event]);
        let reasons: Vec<&str> = found.iter().map(|finding| finding.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "NoPipelineAnswers",
                "FewerThanWanted",
                "Unschedulable",
                "NoPod",
                "FailedCreate"
            ]
        );
        assert!(found[4].message.contains("quota (3 times)"));
    }

    #[test]
    fn a_deployment_that_no_operator_has_seen_says_so() {
        let mut view = view(good(), vec![pod("early", 0, ready()), pod("output", 0, ready())]);
        view.deployment.metadata.generation = Some(2);
        assert_eq!(findings(&view, &[])[0].reason, "NotObserved");
        view.deployment.status = None;
        assert!(findings(&view, &[])[0].message.contains("is it running?"));
    }
}
