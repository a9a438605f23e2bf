//! What a pod says, in words.

use ds4_api::{LABEL_REVISION, LABEL_STAGE};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;

/// Label with the pod's ordinal, set by the `StatefulSet` controller.
const LABEL_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Its pipeline: the ordinal.
pub(crate) fn pipeline(pod: &Pod) -> i32 {
    let named = || {
        pod.name_any()
            .rsplit('-')
            .next()
            .and_then(|ordinal| ordinal.parse().ok())
    };
    pod.labels()
        .get(LABEL_INDEX)
        .and_then(|index| index.parse().ok())
        .or_else(named)
        .unwrap_or(0)
}

pub(crate) fn stage(pod: &Pod) -> &str {
    pod.labels().get(LABEL_STAGE).map_or("?", String::as_str)
}

pub(crate) fn revision(pod: &Pod) -> &str {
    pod.labels().get(LABEL_REVISION).map_or("?", String::as_str)
}

pub(crate) fn node(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or("no node yet")
}

pub(crate) fn ready(pod: &Pod) -> bool {
    conditions(pod).any(|(kind, status, _)| kind == "Ready" && status == "True")
}

fn conditions(pod: &Pod) -> impl Iterator<Item = (&str, &str, &str)> {
    let all = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    all.map(|condition| {
        (
            condition.type_.as_str(),
            condition.status.as_str(),
            condition.message.as_deref().unwrap_or_default(),
        )
    })
}

/// Why the scheduler found no node.
pub(crate) fn unscheduled(pod: &Pod) -> Option<&str> {
    conditions(pod)
        .find(|(kind, status, _)| *kind == "PodScheduled" && *status == "False")
        .map(|(.., message)| message)
}

/// Its containers, those that run first included.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| {
        status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
    })
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    containers(pod).map(|container| container.restart_count).sum()
}

/// Reason and message of a container that waits for something to become better.
pub(crate) fn waiting(container: &ContainerStatus) -> Option<(&str, &str)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((
        waiting.reason.as_deref()?,
        waiting.message.as_deref().unwrap_or_default(),
    ))
}

/// Reason, exit code and last words of a container's last bad end.
pub(crate) fn ended(container: &ContainerStatus) -> Option<(&str, i32, &str)> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = |state: &'_ ContainerState| state.terminated.clone().filter(|ended| ended.exit_code != 0);
    let which = states
        .into_iter()
        .flatten()
        .find(|state| ended(state).is_some())?;
    let ended = which.terminated.as_ref()?;
    Some((
        ended.reason.as_deref().unwrap_or("Error"),
        ended.exit_code,
        ended.message.as_deref().unwrap_or_default().trim(),
    ))
}

/// What it is doing, in a word or two.
pub(crate) fn state(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "leaving".into();
    }
    if ready(pod) {
        return "ready".into();
    }
    if unscheduled(pod).is_some() {
        return "unschedulable".into();
    }
    let plain = ["PodInitializing", "ContainerCreating"];
    let stuck = containers(pod)
        .filter_map(waiting)
        .find(|(reason, _)| !plain.contains(reason));
    if let Some((reason, _)) = stuck {
        return reason.into();
    }
    let running = |container: &&ContainerStatus| {
        container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    };
    let first = pod
        .status
        .iter()
        .flat_map(|status| status.init_container_statuses.iter().flatten())
        .find(running);
    match first {
        Some(container) if container.name == "model" => "fetching the model".into(),
        Some(container) => format!("runs {}", container.name),
        None if containers(pod).any(|container| running(&container)) => "loading".into(),
        None => pod
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_else(|| "Pending".into())
            .to_lowercase(),
    }
}
