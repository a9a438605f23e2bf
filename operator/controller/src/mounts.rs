//! Volumes that do not come: the node says so in events and nowhere else, so the events of pods that hang before their first container
//! are read, and of no others.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use crate::error::Error;
use crate::observe::Member;

/// A node has this long to bring volumes before anybody is asked, in seconds.
const PATIENCE: i64 = 5;
/// Pods that are asked about at once: their siblings hang for the same reason.
const ASKED: usize = 3;
/// Events of a volume that does not come.
const REASONS: [&str; 2] = ["FailedMount", "FailedAttachVolume"];

/// What the nodes say, by pod.
pub(crate) type Mounts = HashMap<String, String>;

/// Whether a pod has a node and no sandbox yet: the condition is the kubelet's own.
pub(crate) fn starts(pod: &Pod) -> bool {
    since(pod, "PodReadyToStartContainers", "False").is_some() && since(pod, "PodScheduled", "True").is_some()
}

/// Whether it is so for longer than it should be.
fn hangs(pod: &Pod, now: Timestamp) -> bool {
    let placed = since(pod, "PodScheduled", "True");
    starts(pod) && placed.is_some_and(|placed| now.as_second() - placed >= PATIENCE)
}

fn since(pod: &Pod, kind: &str, status: &str) -> Option<i64> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let mut found = conditions.filter(|known| known.type_ == kind && known.status == status);
    found
        .next()?
        .last_transition_time
        .as_ref()
        .map(|time| time.0.as_second())
}

/// Asks about pods that hang.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub(crate) async fn mounts(
    client: &Client,
    namespace: &str,
    pods: &[Member],
    now: Timestamp,
) -> Result<Mounts, Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut found = Mounts::new();
    let hanging = pods.iter().filter(|pod| !pod.leaving && hangs(&pod.pod, now));
    for pod in hanging.take(ASKED) {
        let uid = pod.pod.metadata.uid.as_deref().unwrap_or_default();
        let of_pod = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        let events = api.list(&of_pod).await;
        let events = events.map_err(Error::api(format!("listing events of pod {}", pod.name)))?;
        if let Some(said) = last(events.items) {
            found.insert(pod.name.clone(), said);
        }
    }
    Ok(found)
}

/// What was said last about a volume.
fn last(events: Vec<Event>) -> Option<String> {
    let of_volumes = events.into_iter().filter(|event| {
        event
            .reason
            .as_deref()
            .is_some_and(|reason| REASONS.contains(&reason))
    });
    let newest = of_volumes.max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
    newest.message
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(ready_to_start: &str) -> Pod {
        serde_json::from_value(json!({"status": {"conditions": [
            {"type": "PodReadyToStartContainers", "status": ready_to_start, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .expect("a pod")
    }

    #[test]
    fn a_pod_hangs_when_it_has_a_node_and_no_sandbox_for_a_while() {
        let at = |text: &str| text.parse().expect("a time");
        assert!(hangs(&pod("False"), at("2026-01-01T00:00:05Z")));
        assert!(!hangs(&pod("False"), at("2026-01-01T00:00:04Z")));
        assert!(!hangs(&pod("True"), at("2026-01-01T01:00:00Z")));
        assert!(!hangs(&Pod::default(), at("2026-01-01T01:00:00Z")));
    }

    #[test]
    fn the_newest_word_about_a_volume_counts() {
        let event = |reason: &str, time: &str, message: &str| -> Value {
            json!({"metadata": {}, "involvedObject": {}, "reason": reason, "lastTimestamp": time, "message": message})
        };
        let events: Vec<Event> = serde_json::from_value(json!([
            event("FailedMount", "2026-01-01T00:00:02Z", "second"),
            event("FailedMount", "2026-01-01T00:00:01Z", "first"),
            event("BackOff", "2026-01-01T00:00:09Z", "of something else"),
        ]))
        .expect("events");
        assert_eq!(last(events).as_deref(), Some("second"));
        assert_eq!(last(Vec::new()), None);
    }
}
