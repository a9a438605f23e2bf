//! Why a pod is not ready, from what the node says about it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use crate::loading;
use crate::mounts::Mounts;
use crate::observe::Member;

/// A container that ran this long, in seconds, did not fail in a row: the kubelet then starts its own waiting times anew as well.
const A_ROW_ENDS: i64 = 600;

/// One pod's trouble: a reason that users can look up, and what was expected, what was found, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) pod: String,
    pub(crate) revision: String,
    /// It was restarted in a row more often than the failure policy allows.
    pub(crate) given_up: bool,
    /// When its container ended last.
    pub(crate) ended: Option<Timestamp>,
}

/// Reasons that concern the model's file.
const OF_THE_MODEL: [&str; 5] = [
    "ModelChecksumMismatch",
    "ModelNotFound",
    "ModelInvalid",
    "ModelFetchFailed",
    "CacheTooSmall",
];

impl Trouble {
    pub(crate) fn is_of_the_model(&self) -> bool {
        OF_THE_MODEL.contains(&self.reason)
    }
}

/// The troubles of pods that should be ready, those that were given up first. Of volumes `mounts` says what the nodes said.
pub(crate) fn diagnose(pods: &[Member], max_restarts: i32, mounts: &Mounts) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = pods
        .iter()
        .filter(|pod| !pod.ready && !pod.leaving)
        .filter_map(|pod| trouble(pod, max_restarts, mounts))
        .collect();
    troubles.sort_by_key(|trouble| !trouble.given_up);
    troubles
}

fn trouble(member: &Member, max_restarts: i32, mounts: &Mounts) -> Option<Trouble> {
    let status = member.pod.status.as_ref()?;
    let containers = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    let (reason, what) = evicted(status)
        .or_else(|| unschedulable(status))
        .or_else(|| mounts.get(&member.name).map(|said| of_volume(said)))
        .or_else(|| containers().find_map(waits))
        .or_else(|| containers().find_map(|container| ended(container, &member.pod)))?;
    let ends = containers()
        .filter_map(last_end)
        .filter_map(|end| end.finished_at.as_ref());
    Some(Trouble {
        reason,
        message: format!("pod {}: {what}", member.name),
        pod: member.name.clone(),
        revision: member.revision.clone(),
        given_up: containers().any(|container| container.restart_count > max_restarts && in_a_row(container)),
        ended: ends.map(|time| time.0).max(),
    })
}

/// How the container ended last: it runs no more, or was started again since.
fn last_end(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    now.or_else(|| container.last_state.as_ref()?.terminated.as_ref())
}

/// Whether its last run was too short to count as one that went well.
fn in_a_row(container: &ContainerStatus) -> bool {
    last_end(container).is_none_or(|end| {
        let second = |time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.map(|time| time.0.as_second())
        };
        match (second(end.started_at.as_ref()), second(end.finished_at.as_ref())) {
            (Some(started), Some(finished)) => finished - started < A_ROW_ENDS,
            _ => true,
        }
    })
}

type Finding = (&'static str, String);

fn evicted(status: &PodStatus) -> Option<Finding> {
    let failed = status.phase.as_deref() == Some("Failed");
    let reason = status.reason.as_deref().filter(|_| failed)?;
    let said = status.message.as_deref().unwrap_or_default();
    Some(("PodFailed", format!("{reason}: {said}")))
}

fn unschedulable(status: &PodStatus) -> Option<Finding> {
    let condition = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let said = condition.message.as_deref().unwrap_or("no node fits");
    let remedy = "compare the stage's resources and podTemplate with the nodes";
    Some(("Unschedulable", format!("{said} ({remedy})")))
}

fn of_volume(said: &str) -> Finding {
    let remedy = "compare spec.model.source, its cache and the pod's Secrets with what the node and the namespace have";
    ("FailedMount", format!("{said} ({remedy})"))
}

/// A container that cannot start.
fn waits(container: &ContainerStatus) -> Option<Finding> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = waiting.message.as_deref().unwrap_or_default();
    let kind = waiting.reason.as_deref()?;
    match kind {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
        | "ImageInspectError" => {
            let remedy = "check spec.image, the registry and the pull secrets";
            Some((
                "ImagePullFailed",
                format!("image {:?}: {kind}: {said} ({remedy})", container.image),
            ))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(("ContainerNotStarted", format!("{kind}: {said}")))
        }
        _ => None,
    }
}

/// A container that failed, now or before its last restart.
fn ended(container: &ContainerStatus, pod: &Pod) -> Option<Finding> {
    let now = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let before = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = now
        .filter(|ended| ended.exit_code != 0)
        .or_else(|| before.filter(|ended| ended.exit_code != 0))?;
    let restarts = container.restart_count;
    if ended.reason.as_deref() == Some("OOMKilled") {
        let remedy = "raise the stage's memory, or give it fewer layers";
        return Some((
            "NotEnoughMemory",
            format!(
                "container {} was killed at its memory limit of {}, {restarts} restarts ({remedy})",
                container.name,
                memory_limit(pod, &container.name)
            ),
        ));
    }
    let message = ended.message.as_deref().unwrap_or_default();
    let (reason, said) = match loading::error(last_words(message)) {
        Some(error) => (of_fetch(&error), error),
        None => (classify(last_words(message)), last_words(message).to_owned()),
    };
    Some((
        reason,
        format!(
            "container {} ended with {}: {said}; {restarts} restarts",
            container.name, ended.exit_code
        ),
    ))
}

/// As the pod says it; a node without any left has none to name.
fn memory_limit(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    containers
        .filter(|known| known.name == container)
        .find_map(|known| known.resources.as_ref()?.limits.as_ref()?.get("memory"))
        .map_or_else(|| "the node".to_owned(), |limit| limit.0.clone())
}

/// The error that `ds4` printed, or the last line of whatever it said.
fn last_words(message: &str) -> &str {
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .rfind(|line| line.starts_with("ds4: "))
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
}

/// A fetch's own errors; whatever they say, what failed was the fetch.
fn of_fetch(error: &str) -> &'static str {
    if error.starts_with("sha256") {
        "ModelChecksumMismatch"
    } else if error.contains("found 404") {
        "ModelNotFound"
    } else if error.starts_with("the file at the source") {
        "ModelInvalid"
    } else if error.starts_with("free space") {
        "CacheTooSmall"
    } else {
        "ModelFetchFailed"
    }
}

/// The engine's errors name what is wrong; these are the words they use.
fn classify(said: &str) -> &'static str {
    let said = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["sha256", "sha-256", "checksum"]) {
        "ModelChecksumMismatch"
    } else if has(&["no such file"]) {
        "ModelNotFound"
    } else if has(&["gguf", "tensor", "magic"]) {
        "ModelInvalid"
    } else if has(&["memory"]) {
        "NotEnoughMemory"
    } else if has(&["expected"]) {
        "ConfigurationRefused"
    } else {
        "ContainerFailed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::observe::tests::pod;
    use serde_json::{Value, json};

    fn with(status: Value) -> Vec<Member> {
        let mut member = pod("early", "aaaa", 0, false);
        let mut whole = serde_json::to_value(&*member.pod).expect("a pod");
        whole["status"] = status;
        member.pod = Arc::new(serde_json::from_value(whole).expect("a pod"));
        vec![member]
    }

    fn container(state: &Value, last: &Value, restarts: i32) -> Value {
        json!({"containerStatuses": [{"name": "ds4", "image": "x/ds4:9", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last}]})
    }

    fn only(status: Value) -> Trouble {
        let mut found = diagnose(&with(status), 5, &Mounts::new());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn crashed(message: &str, restarts: i32) -> Trouble {
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message}});
        only(container(
            &json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            &ended,
            restarts,
        ))
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
        let trouble = only(container(&waiting, &json!({}), 0));
        assert_eq!(trouble.reason, "ImagePullFailed");
        assert!(
            trouble.message.contains("x/ds4:9") && trouble.message.contains("quickstart-early-aaaa-0"),
            "{trouble:?}"
        );
        assert!(!trouble.given_up);
    }

    #[test]
    fn a_pod_that_fits_no_node_says_what_the_scheduler_said() {
        let said = "0/3 nodes are available: 3 Insufficient memory.";
        let status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}]});
        let trouble = only(status);
        assert!(
            trouble.reason == "Unschedulable" && trouble.message.contains(said),
            "{trouble:?}"
        );
    }

    #[test]
    fn failures_of_the_engine_have_their_own_reasons() {
        let cases = [
            (
                "ds4: m.gguf: sha256: expected aa, found bb",
                "ModelChecksumMismatch",
            ),
            (
                "ds4: /models/m.gguf: No such file or directory (os error 2)",
                "ModelNotFound",
            ),
            ("ds4: /models/m.gguf: not a GGUF file", "ModelInvalid"),
            ("ds4: --layers: expected A:B, found 9:3", "ConfigurationRefused"),
            ("thread main panicked", "ContainerFailed"),
            (
                r#"{"phase":"failed","error":"https://h/f: status: expected 200 or 206, found 404: no such file"}"#,
                "ModelNotFound",
            ),
            (
                r#"{"phase":"failed","error":"https://h/f: timed out (3 attempts without a byte)"}"#,
                "ModelFetchFailed",
            ),
            (
                r#"{"phase":"failed","error":"free space in /models/a: expected 9 bytes, found 1"}"#,
                "CacheTooSmall",
            ),
        ];
        for (message, reason) in cases {
            assert_eq!(
                crashed(&format!("log line\n{message}\n"), 1).reason,
                reason,
                "{message}"
            );
        }
    }

    #[test]
    fn a_container_killed_for_memory_and_one_restarted_too_often() {
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let trouble = only(container(&json!({"running": {}}), &killed, 2));
        assert!(
            trouble.reason == "NotEnoughMemory" && trouble.message.contains("2 restarts"),
            "{trouble:?}"
        );
        assert!(!crashed("ds4: x", 5).given_up);
        assert!(crashed("ds4: x", 6).given_up);
    }

    #[test]
    fn restarts_count_while_they_follow_each_other() {
        let ended = |finished: &str| json!({"terminated": {"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": finished}});
        let of = |finished| {
            only(container(
                &json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                &ended(finished),
                9,
            ))
        };
        assert!(of("2026-01-01T00:09:59Z").given_up);
        let after_an_hour = of("2026-01-01T01:00:00Z");
        assert!(!after_an_hour.given_up, "it ran for an hour in between");
        assert_eq!(after_an_hour.ended, "2026-01-01T01:00:00Z".parse().ok());
    }

    #[test]
    fn a_volume_that_does_not_come_is_named_by_the_node() {
        let said = "MountVolume.SetUp failed for volume \"model\" : hostPath type check failed: /models is not a directory";
        let mounts = Mounts::from([("quickstart-early-aaaa-0".to_owned(), said.to_owned())]);
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let pods = with(container(&waiting, &json!({}), 0));
        let found = diagnose(&pods, 5, &mounts);
        assert_eq!(found[0].reason, "FailedMount");
        assert!(found[0].message.contains(said), "{found:?}");
        assert!(diagnose(&pods, 5, &Mounts::new()).is_empty(), "still starting");
    }

    #[test]
    fn ready_and_leaving_pods_have_no_trouble() {
        let mut pods = with(container(
            &json!({"waiting": {"reason": "ErrImagePull"}}),
            &json!({}),
            0,
        ));
        pods[0].leaving = true;
        assert!(diagnose(&pods, 5, &Mounts::new()).is_empty());
        assert!(diagnose(&[pod("early", "aaaa", 0, true)], 5, &Mounts::new()).is_empty());
    }
}
