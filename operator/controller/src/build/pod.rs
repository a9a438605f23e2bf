//! The pod of a stage.

use ds4_api::{
    DS4Deployment, GRPC_PORT, LABEL_MANAGED_BY, LABEL_NAME, LABEL_ROLE, LABEL_STAGE, MANAGED_BY, Names,
    PROGRESS_PORT, Stage,
};
use serde_json::{Value, json};

use super::arguments::{arguments, env};
use super::model::{Mounted, claims, mounted};
use super::probes::probes;
use super::{Defaults, metal, secrets};
use crate::error::Error;

/// Port of the output pod's HTTP side inside the pod.
pub(crate) const HTTP_PORT: u16 = 8000;
/// Its name in the pod.
pub(crate) const HTTP_PORT_NAME: &str = "http";
/// Class and size of the cache's claim.
const ANNOTATION_CACHE: &str = "ds4.dev/cache";
/// User and group of the image (distroless's `nonroot`).
const USER: i64 = 65532;
/// A leaving output pod goes on taking requests for this many seconds: until every node's proxy has learned that it leaves.
const NOTICE_SECONDS: i32 = 5;

/// The pod template as JSON; what the user gives is merged over it.
pub(super) fn template(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    defaults: &Defaults,
    revision: &str,
) -> Result<Value, Error> {
    let output = stage.layers.last.is_none();
    let model = mounted(&deployment.spec.model, stage);
    let mut mounts = vec![model.mount.clone()];
    let mut volumes: Vec<Value> = model.volume.clone().into_iter().collect();
    secrets::mount(deployment, names, output, &mut volumes, &mut mounts);
    let mut container = json!({
        "name": "ds4",
        "image": image(deployment, defaults),
        "imagePullPolicy": pull_policy(deployment, defaults),
        "args": arguments(deployment, stage, names, revision, &model.path),
        "env": env(deployment),
        "ports": [if output { json!({"name": HTTP_PORT_NAME, "containerPort": HTTP_PORT}) } else { json!({"name": "grpc", "containerPort": GRPC_PORT}) }],
        "securityContext": container_security(),
        "volumeMounts": mounts,
        // Of a process that failed the last lines say why; the operator reads them.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    probes(&mut container, output, secrets::encrypted(deployment));
    if output {
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": NOTICE_SECONDS}}});
    }
    if let Some(resources) = &stage.resources {
        container["resources"] = resources.clone();
    }
    let mut template = json!({
        "metadata": {"labels": labels(stage, names)},
        "spec": pod(deployment, names, container, volumes),
    });
    // A claim is part of the revision too, though it stands beside the template.
    if let Some(claims) = claims(&deployment.spec.model) {
        let claim = &claims[0]["spec"];
        template["metadata"]["annotations"] = json!({ANNOTATION_CACHE: format!(
            "{} {}",
            claim["storageClassName"].as_str().unwrap_or_default(),
            claim["resources"]["requests"]["storage"].as_str().unwrap_or_default()
        )});
    }
    if let Some(writer) = writer(deployment, defaults, &model) {
        template["spec"]["initContainers"] = json!([writer]);
    }
    metal::place(stage, &mut template);
    if let Some(extra) = &stage.pod_template {
        if !extra.is_object() {
            return Err(Error::PodTemplate {
                stage: stage.name.clone(),
                reason: format!("expected an object, found {extra}"),
            });
        }
        merge(&mut template, extra);
    }
    Ok(template)
}

/// Labels by which a stage's pods are found, whatever their revision.
pub(super) fn labels(stage: &Stage, names: &Names) -> Value {
    json!({
        "app.kubernetes.io/name": "ds4",
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: names.name(),
        LABEL_STAGE: stage.name,
        LABEL_ROLE: if stage.layers.last.is_none() { "output" } else { "prefill" },
    })
}

fn pod(deployment: &DS4Deployment, names: &Names, container: Value, volumes: Vec<Value>) -> Value {
    json!({
        "serviceAccountName": names.name(),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": apart(names),
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": deployment.spec.rollout.drain_timeout_seconds + NOTICE_SECONDS,
    })
}

/// The container that writes the model before the engine starts, where one does.
fn writer(deployment: &DS4Deployment, defaults: &Defaults, model: &Mounted) -> Option<Value> {
    let writer = model.writer.as_ref()?;
    let ports = if writer.says_progress {
        json!([{"name": "progress", "containerPort": PROGRESS_PORT}])
    } else {
        json!([])
    };
    Some(json!({
        "name": "model",
        "image": image(deployment, defaults),
        "imagePullPolicy": pull_policy(deployment, defaults),
        "args": writer.arguments,
        "env": writer.env,
        "ports": ports,
        "securityContext": container_security(),
        "volumeMounts": [{"name": "model", "mountPath": "/models"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }))
}

/// Objects merge key by key, lists of named things by name; anything else is replaced.
fn merge(base: &mut Value, extra: &Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(extra)) if extra.iter().all(|item| item.get("name").is_some()) => {
            for item in extra {
                match base
                    .iter_mut()
                    .find(|known| known.get("name") == item.get("name"))
                {
                    Some(known) => merge(known, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, extra) => *base = extra.clone(),
    }
}

fn image(deployment: &DS4Deployment, defaults: &Defaults) -> String {
    deployment
        .spec
        .image
        .as_ref()
        .map_or_else(|| defaults.image.clone(), ds4_api::Image::reference)
}

fn pull_policy(deployment: &DS4Deployment, defaults: &Defaults) -> String {
    let own = deployment
        .spec
        .image
        .as_ref()
        .map(|image| image.pull_policy.clone().unwrap_or_else(|| "IfNotPresent".into()));
    own.unwrap_or_else(|| defaults.pull_policy.clone())
}

fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

/// Pods of one deployment prefer different nodes.
fn apart(names: &Names) -> Value {
    json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 100,
        "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {LABEL_NAME: names.name()}},
        },
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_lists_merge_by_name_and_other_values_are_replaced() {
        let mut base = json!({"containers": [{"name": "ds4", "args": ["a"], "env": [{"name": "A", "value": "1"}]}], "x": 1});
        merge(
            &mut base,
            &json!({"containers": [{"name": "ds4", "env": [{"name": "B", "value": "2"}]}, {"name": "side"}], "x": 2}),
        );
        assert_eq!(
            base["containers"][0]["env"],
            json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])
        );
        assert_eq!(
            (
                base["containers"][0]["args"][0].as_str(),
                base["containers"][1]["name"].as_str(),
                base["x"].as_i64()
            ),
            (Some("a"), Some("side"), Some(2))
        );
    }
}
