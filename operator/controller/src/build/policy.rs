//! What others may do to the pods: evict them, and talk to them.

use std::net::IpAddr;

use ds4_api::{DS4Deployment, GRPC_PORT, LABEL_NAME, MANAGED_BY, Names, PROGRESS_PORT};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::metadata;
use super::pod::HTTP_PORT;
use crate::error::Error;

/// A drained node waits while too many pods of the deployment are missing.
pub(super) fn disruption(deployment: &DS4Deployment, names: &Names) -> Result<PodDisruptionBudget, Error> {
    Ok(serde_json::from_value(json!({
        "metadata": metadata(deployment, names, names.name().to_owned()),
        "spec": {
            "maxUnavailable": deployment.spec.disruption.max_unavailable,
            "selector": {"matchLabels": {LABEL_NAME: names.name()}},
            // A pod that is not ready is no loss: a stuck one must not block a node's repair.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }))?)
}

/// The network that holds this address alone.
fn one(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{bits}")
}

/// Stages are asked by pods of their own deployment only; the HTTP side by everyone, since clients are anywhere.
pub(super) fn network(
    deployment: &DS4Deployment,
    names: &Names,
    outside: &[IpAddr],
) -> Result<Option<NetworkPolicy>, Error> {
    if !deployment.spec.security.network_policy {
        return Ok(None);
    }
    let mut stages = vec![json!({"podSelector": {"matchLabels": {LABEL_NAME: names.name()}}})];
    // No pod selector matches what comes from a node outside the pod network.
    stages.extend(
        outside
            .iter()
            .map(|address| json!({"ipBlock": {"cidr": one(*address)}})),
    );
    let port = |number: u16| json!([{"protocol": "TCP", "port": number}]);
    let mut rules: Vec<Value> = vec![
        json!({"from": stages, "ports": port(GRPC_PORT)}),
        json!({"ports": port(HTTP_PORT)}),
    ];
    if deployment.spec.model.source.hugging_face.is_some() || deployment.spec.model.source.http.is_some() {
        // The operator asks how far a fetch is, from whatever namespace it is in.
        let operator = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": MANAGED_BY}}});
        rules.push(json!({"from": [operator], "ports": port(PROGRESS_PORT)}));
    }
    Ok(Some(serde_json::from_value(json!({
        "metadata": metadata(deployment, names, names.name().to_owned()),
        "spec": {
            "podSelector": {"matchLabels": {LABEL_NAME: names.name()}},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }))?))
}
