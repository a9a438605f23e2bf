//! Secrets in a pod: certificates for the hops between pods, and the keys of clients.

use ds4_api::{DS4Deployment, MtlsMode, Names};
use serde_json::{Value, json};

/// Where `tls.crt`, `tls.key` and `ca.crt` lie.
const TLS: &str = "/tls";
/// Where the keys of clients lie.
const KEYS: &str = "/keys";
/// The file with one key per line.
const KEYS_FILE: &str = "keys";

/// Adds what the deployment asks for. Mounted Secrets follow their changes; nothing is in the environment, where children and dumps see it.
pub(super) fn mount(
    deployment: &DS4Deployment,
    names: &Names,
    output: bool,
    volumes: &mut Vec<Value>,
    mounts: &mut Vec<Value>,
) {
    if encrypted(deployment) {
        volumes
            .push(json!({"name": "tls", "secret": {"secretName": names.tls_secret(), "defaultMode": 0o440}}));
        mounts.push(json!({"name": "tls", "mountPath": TLS, "readOnly": true}));
    }
    if let Some(keys) = deployment
        .spec
        .server
        .api_keys_secret_ref
        .as_ref()
        .filter(|_| output)
    {
        let items = [json!({"key": keys.key, "path": KEYS_FILE})];
        volumes.push(json!({"name": "keys", "secret": {"secretName": keys.name, "items": items, "defaultMode": 0o440}}));
        mounts.push(json!({"name": "keys", "mountPath": KEYS, "readOnly": true}));
    }
}

pub(super) fn encrypted(deployment: &DS4Deployment) -> bool {
    deployment.spec.security.mtls.mode != MtlsMode::Disabled
}

pub(super) fn tls_arguments(deployment: &DS4Deployment) -> Vec<String> {
    if encrypted(deployment) {
        vec!["--tls-dir".into(), TLS.into()]
    } else {
        Vec::new()
    }
}

pub(super) fn key_arguments(deployment: &DS4Deployment) -> Vec<String> {
    if deployment.spec.server.api_keys_secret_ref.is_some() {
        vec!["--api-keys-file".into(), format!("{KEYS}/{KEYS_FILE}")]
    } else {
        Vec::new()
    }
}
