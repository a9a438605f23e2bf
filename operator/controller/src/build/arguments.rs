//! What the engine is told: arguments and environment.

use ds4_api::{DS4Deployment, GRPC_PORT, HEALTH_PORT, Names, OnFailure, Policy, Stage};
use serde_json::{Value, json};

use super::pod::HTTP_PORT;
use super::{metal, secrets};

/// Arguments of a stage's container.
pub(super) fn arguments(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    revision: &str,
    model: &str,
) -> Vec<String> {
    let mut arguments = if stage.layers.last.is_none() {
        serve(deployment, stage, names, revision, model)
    } else {
        prefill(deployment, stage, model)
    };
    if let Some(tokens) = deployment.spec.context.max_tokens {
        arguments.extend(["--max-context".into(), tokens.to_string()]);
    }
    arguments.extend(metal::arguments(stage));
    arguments.extend(secrets::tls_arguments(deployment));
    arguments
}

fn prefill(deployment: &DS4Deployment, stage: &Stage, model: &str) -> Vec<String> {
    let listen = format!("0.0.0.0:{GRPC_PORT}");
    let layers = stage.layers.argument();
    let flags = [
        "stage", "--model", model, "--layers", &layers, "--listen", &listen,
    ];
    let mut arguments: Vec<String> = flags.map(String::from).into();
    if secrets::encrypted(deployment) {
        arguments.extend(["--health-listen".into(), format!("0.0.0.0:{HEALTH_PORT}")]);
    }
    arguments
}

fn serve(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    revision: &str,
    model: &str,
) -> Vec<String> {
    let spec = &deployment.spec;
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
        ("--model", model.to_owned()),
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
    let flags = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    let mut arguments: Vec<String> = std::iter::once("serve".to_owned()).chain(flags).collect();
    let addresses = addresses(deployment, names, revision);
    if !addresses.is_empty() {
        arguments.extend(["--stages".into(), addresses.join(",")]);
    }
    arguments.extend(secrets::key_arguments(deployment));
    arguments
}

/// Kubernetes replaces the reference by the pod's own ordinal: pod k talks to pods k of its own revision.
fn addresses(deployment: &DS4Deployment, names: &Names, revision: &str) -> Vec<String> {
    let stages = deployment.spec.pipeline.ordered();
    stages
        .iter()
        .filter(|stage| stage.layers.last.is_some())
        .map(|stage| names.address(&stage.name, revision, "$(DS4_ORDINAL)"))
        .collect()
}

pub(super) fn env(deployment: &DS4Deployment) -> Value {
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
