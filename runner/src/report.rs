//! Tells the API server what is known of a pod. Runs beside the pod's life, which goes on while the API server is away.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::agent::Shared;
use crate::facts::Facts;

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(1);
/// No request may take longer: after that its connection is given up, and the next one is new.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Facts on their way to the API server, newest first.
pub(crate) struct Reporter {
    facts: watch::Sender<(u64, Option<Facts>)>,
    written: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Reporter {
    pub(crate) fn start(shared: &Shared, pod: &Pod) -> Self {
        let (facts, wanted) = watch::channel((0, None));
        let (done, written) = watch::channel(0);
        let task = tokio::spawn(write_all(shared.clone(), pod.clone(), wanted, done));
        Self { facts, written, task }
    }

    /// Tells this as soon as it can be told; older facts that were not told yet are not told any more.
    pub(crate) fn tell(&self, facts: &Facts) {
        self.facts
            .send_modify(|(number, wanted)| (*number, *wanted) = (*number + 1, Some(facts.clone())));
    }

    /// Waits until everything was told, or the pod is gone.
    pub(crate) async fn told(&mut self) {
        let newest = self.facts.borrow().0;
        // An error means that the task has ended: there is nobody to wait for.
        let _ = self.written.wait_for(|written| *written >= newest).await;
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write_all(
    shared: Shared,
    pod: Pod,
    mut wanted: watch::Receiver<(u64, Option<Facts>)>,
    done: watch::Sender<u64>,
) {
    let mut last = pod.status.clone().unwrap_or_default();
    while wanted.changed().await.is_ok() {
        loop {
            let (number, facts) = wanted.borrow_and_update().clone();
            let Some(facts) = facts else { break };
            let address = shared.config.address.to_string();
            let status = facts.status(&address, pod.metadata.generation, &last, Timestamp::now());
            if status == last {
                done.send_replace(number);
                break;
            }
            match write(&shared, &pod, &status).await {
                Ok(found) => {
                    last = found.unwrap_or(status);
                    done.send_replace(number);
                    break;
                }
                Err(error) => {
                    tracing::warn!(pod = pod.name_any(), error, "status not written, again soon");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Writes a status; none when the pod is gone, or another of its name is there.
///
/// # Errors
/// When the API server does not take it.
pub(crate) async fn write(
    shared: &Shared,
    pod: &Pod,
    status: &PodStatus,
) -> Result<Option<PodStatus>, String> {
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": cleared(status)});
    // Conditions merge by their type: those of others stay.
    let patch = Patch::Strategic(&patch);
    let (name, parameters) = (pod.name_any(), PatchParams::default());
    let work = api.patch_status(&name, &parameters, &patch);
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(pod)) => Ok(pod.status),
        Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}

/// A merge keeps what is not named: what is unset has to be said as null, or yesterday's reason stays.
fn cleared(status: &PodStatus) -> Value {
    let mut status = json!(status);
    let conditions = status["conditions"].as_array_mut().into_iter().flatten();
    for condition in conditions {
        for field in ["reason", "message"] {
            if condition.get(field).is_none() {
                condition[field] = Value::Null;
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_a_reason_takes_the_old_one_away() {
        let status: PodStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "False", "reason": "Waits"},
        ]}))
        .expect("a status");
        let patch = cleared(&status);
        assert!(patch["conditions"][0].get("reason").is_some_and(Value::is_null));
        assert_eq!(patch["conditions"][1]["reason"], "Waits");
    }
}
