//! `kubectl ds4 status`: deployment, pipelines, stages, pods.

use std::collections::BTreeSet;
use std::fmt::Write;

use ds4_api::{DS4Deployment, Stage, condition};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::View;
use crate::facts;

/// All deployments as trees.
pub(crate) fn render(views: &[View]) -> String {
    if views.is_empty() {
        return "no DS4Deployments here: kubectl apply one, or look elsewhere with -n or -A\n".into();
    }
    views.iter().map(tree).collect::<Vec<_>>().join("\n")
}

fn tree(view: &View) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", headline(view));
    let pipelines: BTreeSet<i32> = view
        .pods
        .iter()
        .map(facts::pipeline)
        .chain(0..view.deployment.spec.replicas)
        .collect();
    for (i, pipeline) in pipelines.iter().enumerate() {
        let last = i + 1 == pipelines.len();
        let own: Vec<&Pod> = view
            .pods
            .iter()
            .filter(|pod| facts::pipeline(pod) == *pipeline)
            .collect();
        let ready = own.iter().filter(|pod| facts::ready(pod)).count();
        let stages = view.deployment.spec.pipeline.ordered();
        let _ = writeln!(
            text,
            "{} pipeline {pipeline}  {ready}/{} stages ready",
            if last { "└─" } else { "├─" },
            stages.len()
        );
        for (j, stage) in stages.iter().enumerate() {
            branch(
                &mut text,
                &view.deployment,
                stage,
                &own,
                last,
                j + 1 == stages.len(),
            );
        }
    }
    text
}

fn headline(view: &View) -> String {
    let deployment = &view.deployment;
    let status = deployment.status.clone().unwrap_or_default();
    let is = |kind: &str| {
        status
            .conditions
            .iter()
            .any(|known| known.type_ == kind && known.status == "True")
    };
    let word = match (
        is(condition::AVAILABLE),
        is(condition::DEGRADED),
        is(condition::PROGRESSING),
    ) {
        (false, ..) => "NOT AVAILABLE",
        (true, true, _) => "degraded",
        (true, false, true) => "available, changing",
        (true, false, false) => "available",
    };
    let revision = status.current_revision.as_deref().unwrap_or("none yet");
    format!(
        "{}  {word}  {}/{} pipelines  model {}  revision {revision}",
        view.path(),
        status.ready_replicas,
        deployment.spec.replicas,
        deployment.spec.model.name
    )
}

fn branch(
    text: &mut String,
    deployment: &DS4Deployment,
    stage: &Stage,
    pods: &[&Pod],
    last_pipeline: bool,
    last_stage: bool,
) {
    let (rail, knot) = (
        if last_pipeline { " " } else { "│" },
        if last_stage { "└─" } else { "├─" },
    );
    let layers = stage.layers.argument();
    let own: Vec<&&Pod> = pods
        .iter()
        .filter(|pod| facts::stage(pod) == stage.name)
        .collect();
    if own.is_empty() {
        let _ = writeln!(text, "{rail}  {knot} {:<12} {layers:<10} no pod", stage.name);
    }
    for pod in own {
        let restarts = match facts::restarts(pod) {
            0 => String::new(),
            n => format!("  {n} restarts"),
        };
        let _ = writeln!(
            text,
            "{rail}  {knot} {:<12} {layers:<10} {}{}{restarts}  {} on {}  revision {}",
            stage.name,
            facts::state(pod),
            loaded(deployment, stage, pod),
            pod.name_any(),
            facts::node(pod),
            facts::revision(pod)
        );
    }
}

/// How far a stage is, while one of its pods is not there yet.
fn loaded(deployment: &DS4Deployment, stage: &Stage, pod: &Pod) -> String {
    if facts::ready(pod) {
        return String::new();
    }
    let status = deployment
        .status
        .iter()
        .flat_map(|status| &status.stages)
        .find(|known| known.name == stage.name);
    status
        .and_then(|known| known.loaded.as_ref())
        .map_or_else(String::new, |loaded| format!(" {loaded}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::joined;
    use serde_json::{Value, json};

    pub(crate) fn deployment(status: Value) -> DS4Deployment {
        let mut value = json!({
            "apiVersion": "ds4.dev/v1alpha1", "kind": "DS4Deployment", "metadata": {"name": "flash", "namespace": "llm", "generation": 1},
            "spec": {"replicas": 2, "model": {"name": "flash", "source": {"hostPath": {"path": "/m"}}},
                "pipeline": {"stages": [{"name": "output", "layers": {"first": 2}}, {"name": "early", "layers": {"first": 0, "last": 1}}]}},
        });
        value["status"] = status;
        serde_json::from_value(value).expect("a deployment")
    }

    pub(crate) fn pod(stage: &str, ordinal: i32, status: Value) -> Pod {
        let mut value = json!({
            "metadata": {"name": format!("flash-{stage}-7c9f-{ordinal}"), "namespace": "llm", "labels": {
                "ds4.dev/name": "flash", "ds4.dev/stage": stage, "ds4.dev/revision": "7c9f", "apps.kubernetes.io/pod-index": ordinal.to_string()}},
            "spec": {"containers": [], "nodeName": "node-1"},
        });
        value["status"] = status;
        serde_json::from_value(value).expect("a pod")
    }

    pub(crate) fn ready() -> Value {
        json!({"conditions": [{"type": "Ready", "status": "True"}]})
    }

    pub(crate) fn container(name: &str, restarts: i32, state: Value, last: Value) -> Value {
        json!({"name": name, "image": "ds4:1", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last})
    }

    #[test]
    fn the_tree_shows_what_each_pod_does() {
        let status = json!({"replicas": 2, "readyReplicas": 1, "currentRevision": "7c9f", "conditions": [
            {"type": "Available", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Degraded", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let crashed = container(
            "ds4",
            3,
            json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            json!({}),
        );
        let fetching =
            json!({"initContainerStatuses": [container("model", 0, json!({"running": {}}), json!({}))]});
        let pods = vec![
            pod("early", 0, ready()),
            pod("output", 0, ready()),
            pod("early", 1, json!({"containerStatuses": [crashed]})),
            pod("output", 1, fetching),
        ];
        let text = render(&joined(vec![deployment(status)], pods));
        let expected = "llm/flash  degraded  1/2 pipelines  model flash  revision 7c9f\n\
                        ├─ pipeline 0  2/2 stages ready\n\
                        │  ├─ early        0:1        ready  flash-early-7c9f-0 on node-1  revision 7c9f\n\
                        │  └─ output       2:output   ready  flash-output-7c9f-0 on node-1  revision 7c9f\n\
                        └─ pipeline 1  0/2 stages ready\n   \
                        ├─ early        0:1        CrashLoopBackOff  3 restarts  flash-early-7c9f-1 on node-1  revision 7c9f\n   \
                        └─ output       2:output   fetching the model  flash-output-7c9f-1 on node-1  revision 7c9f\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn missing_pods_are_shown_as_missing() {
        let text = render(&joined(vec![deployment(json!({}))], Vec::new()));
        assert_eq!(text.matches("no pod").count(), 4, "{text}");
        assert!(
            text.starts_with("llm/flash  NOT AVAILABLE  0/2 pipelines"),
            "{text}"
        );
        assert!(render(&[]).contains("kubectl apply"));
    }
}
