//! The pod of a stage.

use ds4_api::{
    DS4Deployment, GRPC_PORT, LABEL_NAME, LABEL_ROLE, LABEL_STAGE, ModelSource, Names, OnFailure, Policy,
    Stage,
};
use serde_json::{Value, json};

use super::Defaults;
use crate::error::Error;

/// Port of the output pod's HTTP side inside the pod.
const HTTP_PORT: u16 = 8000;
/// User and group of the image (distroless's `nonroot`).
const USER: i64 = 65532;
/// Where the model lies in the container.
const MODEL: &str = "/models/model.gguf";
/// Probes give a pod this many periods of ten seconds to load: 45 minutes for the largest files on slow disks.
const LOADING_PERIODS: i32 = 270;

/// The pod template as JSON; what the user gives is merged over it.
pub(super) fn template(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    defaults: &Defaults,
) -> Result<Value, Error> {
    let output = stage.layers.last.is_none();
    let model = model(&deployment.spec.model.source);
    let mut container = json!({
        "name": "ds4",
        "image": image(deployment, defaults),
        "imagePullPolicy": pull_policy(deployment, defaults),
        "args": if output { serve(deployment, stage, names, &model.path) } else { prefill(deployment, stage, &model.path) },
        "env": env(deployment),
        "ports": [if output { json!({"name": "http", "containerPort": HTTP_PORT}) } else { json!({"name": "grpc", "containerPort": GRPC_PORT}) }],
        "securityContext": container_security(),
        "volumeMounts": [model.mount],
    });
    probes(&mut container, output);
    if let Some(resources) = &stage.resources {
        container["resources"] = resources.clone();
    }
    let role = if output { "output" } else { "prefill" };
    let mut template = json!({
        "metadata": {"labels": {
            "app.kubernetes.io/name": "ds4", LABEL_NAME: names.name(), LABEL_STAGE: stage.name, LABEL_ROLE: role,
        }},
        "spec": {
            "serviceAccountName": names.name(),
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "affinity": apart(names),
            "containers": [container],
            "volumes": [model.volume],
            "terminationGracePeriodSeconds": 60,
        },
    });
    if let Some(arguments) = model.writer {
        template["spec"]["initContainers"] = json!([{
            "name": "model",
            "image": image(deployment, defaults),
            "imagePullPolicy": pull_policy(deployment, defaults),
            "args": arguments,
            "securityContext": container_security(),
            "volumeMounts": [{"name": "model", "mountPath": "/models"}],
        }]);
    }
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

/// How the model's file comes into the pod.
struct Mounted {
    path: String,
    volume: Value,
    mount: Value,
    /// Arguments of the container that writes it first.
    writer: Option<Vec<String>>,
}

fn model(source: &ModelSource) -> Mounted {
    if let Some(claim) = &source.persistent_volume_claim {
        return Mounted {
            path: format!("/models/{}", claim.path.trim_start_matches('/')),
            volume: json!({"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": true}}),
            mount: json!({"name": "model", "mountPath": "/models", "readOnly": true}),
            writer: None,
        };
    }
    if let Some(file) = &source.host_path {
        return Mounted {
            path: MODEL.into(),
            volume: json!({"name": "model", "hostPath": {"path": file.path, "type": "File"}}),
            mount: json!({"name": "model", "mountPath": MODEL, "readOnly": true}),
            writer: None,
        };
    }
    let writer = source.synthetic.as_ref().map(|synthetic| {
        let mut arguments: Vec<String> = ["synth", "--out", MODEL, "--preset", synthetic.preset.name()]
            .map(String::from)
            .into();
        if let Some(seed) = synthetic.seed {
            arguments.extend(["--seed".into(), seed.to_string()]);
        }
        arguments
    });
    Mounted {
        path: MODEL.into(),
        volume: json!({"name": "model", "emptyDir": {}}),
        mount: json!({"name": "model", "mountPath": "/models"}),
        writer,
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

fn prefill(deployment: &DS4Deployment, stage: &Stage, model: &str) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["stage".into(), "--model".into(), model.into()];
    arguments.extend([
        "--layers".into(),
        stage.layers.argument(),
        "--listen".into(),
        format!("0.0.0.0:{GRPC_PORT}"),
    ]);
    if let Some(tokens) = deployment.spec.context.max_tokens {
        arguments.extend(["--max-context".into(), tokens.to_string()]);
    }
    arguments
}

fn serve(deployment: &DS4Deployment, stage: &Stage, names: &Names, model: &str) -> Vec<String> {
    let spec = &deployment.spec;
    let others = spec
        .pipeline
        .ordered()
        .into_iter()
        .filter(|other| other.layers.last.is_some());
    // Kubernetes replaces the reference by the pod's own ordinal: pod k talks to pods k.
    let addresses: Vec<String> = others
        .map(|other| names.address(&other.name, "$(DS4_ORDINAL)"))
        .collect();
    let mut arguments: Vec<String> = vec!["serve".into(), "--model".into(), model.into()];
    let policy = match spec.handoff.policy {
        Policy::Adaptive => "adaptive",
        Policy::Always => "always",
        Policy::Never => "never",
    };
    let on_failure = match spec.handoff.on_failure {
        OnFailure::RecomputeLocally => "recompute-locally",
        OnFailure::Fail => "fail",
    };
    let flags = [
        ("--layers", stage.layers.argument()),
        ("--listen", format!("0.0.0.0:{HTTP_PORT}")),
        ("--model-name", spec.model.name.clone()),
        ("--prefill-chunk", spec.pipeline.prefill_chunk_tokens.to_string()),
        ("--window", spec.pipeline.window.to_string()),
        ("--min-prompt-tokens", spec.handoff.min_prompt_tokens.to_string()),
        ("--handoff-timeout", format!("{}s", spec.handoff.timeout_seconds)),
        ("--policy", policy.into()),
        ("--on-failure", on_failure.into()),
    ];
    arguments.extend(
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    if !addresses.is_empty() {
        arguments.extend(["--stages".into(), addresses.join(",")]);
    }
    if let Some(tokens) = spec.context.max_tokens {
        arguments.extend(["--max-context".into(), tokens.to_string()]);
    }
    arguments
}

fn env(deployment: &DS4Deployment) -> Value {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        field("DS4_ORDINAL", "metadata.labels['apps.kubernetes.io/pod-index']"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("NODE_NAME", "spec.nodeName"),
    ];
    if let Some(endpoint) = &deployment.spec.observability.otlp_endpoint {
        env.push(json!({"name": "DS4_OTLP_ENDPOINT", "value": endpoint}));
    }
    env.into()
}

fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

/// The kubelet may restart a pod only when its process is gone or stuck, never because it loads.
fn probes(container: &mut Value, output: bool) {
    let alive = if output {
        json!({"httpGet": {"path": "/healthz", "port": "http"}})
    } else {
        json!({"grpc": {"port": GRPC_PORT}})
    };
    let ready = if output {
        json!({"httpGet": {"path": "/readyz", "port": "http"}})
    } else {
        alive.clone()
    };
    let with = |mut probe: Value, period: i32, failures: i32| {
        probe["periodSeconds"] = period.into();
        probe["failureThreshold"] = failures.into();
        probe["timeoutSeconds"] = 5.into();
        probe
    };
    let start_period = if output { 1 } else { 2 };
    container["startupProbe"] = with(alive.clone(), start_period, LOADING_PERIODS * 10 / start_period);
    container["livenessProbe"] = with(alive, 10, 6);
    container["readinessProbe"] = with(ready, 2, 1);
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

    #[test]
    fn a_file_of_the_node_is_mounted_read_only_and_written_by_nobody() {
        let source = ModelSource {
            host_path: Some(ds4_api::FileSource {
                path: "/models/flash.gguf".into(),
            }),
            ..ModelSource::default()
        };
        let mounted = model(&source);
        assert_eq!(
            (
                mounted.volume["hostPath"]["path"].as_str(),
                mounted.mount["readOnly"].as_bool()
            ),
            (Some("/models/flash.gguf"), Some(true))
        );
        assert!(mounted.writer.is_none());
    }
}
