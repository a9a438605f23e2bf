//! What people get wrong: each has a reason of its own, and a message that names what was expected and what was found.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, beside, seconds};

/// Applies a manifest that cannot work, beside what serves, and reads what the condition says.
fn named(
    world: &mut World<'_>,
    manifest: &Value,
    kind: &str,
    reason: &str,
    words: &[&str],
) -> Result<String> {
    world.apply(manifest)?;
    let status = if kind == "Degraded" { "True" } else { "False" };
    let took = world.until_says(kind, status, reason)?;
    let message = world.message(kind)?;
    for word in words {
        ensure!(message.contains(word), "the message has no {word:?}: {message}");
    }
    Ok(format!("{reason} after {:.1} s: {message}", took.as_secs_f64()))
}

/// No node has that label.
pub(super) fn unschedulable(world: &mut World<'_>) -> Result<String> {
    world.settle(&beside(1))?;
    let mut bad = beside(1);
    bad["spec"]["pipeline"]["stages"][0]["podTemplate"] =
        json!({"spec": {"nodeSelector": {"disk": "none-such"}}});
    named(
        world,
        &bad,
        "Degraded",
        "Unschedulable",
        &["flash-early-", "nodes are available"],
    )
}

/// The Secret with the keys does not exist.
pub(super) fn no_keys(world: &mut World<'_>) -> Result<String> {
    world.settle(&beside(1))?;
    let mut bad = beside(1);
    bad["spec"]["pipeline"]["stages"][1]["podTemplate"] = json!({"spec": {"containers": [
        {"name": "ds4", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "none-such", "key": "x"}}}]}]}});
    named(world, &bad, "Degraded", "ContainerNotStarted", &["none-such"])
}

/// The container needs more than its limit.
pub(super) fn no_memory(world: &mut World<'_>) -> Result<String> {
    world.settle(&beside(1))?;
    let mut bad = beside(1);
    // 10 MB of model in memory, where 8 MB are allowed.
    bad["spec"]["model"]["source"]["synthetic"]["preset"] = "tiny".into();
    bad["spec"]["pipeline"]["stages"][0]["podTemplate"] = json!({"spec": {
        "volumes": [{"name": "model", "emptyDir": {"medium": "Memory"}}],
        "initContainers": [{"name": "model", "resources": {"limits": {"memory": "8Mi"}}}],
    }});
    named(
        world,
        &bad,
        "Degraded",
        "NotEnoughMemory",
        &["flash-early-", "8Mi", "fewer layers"],
    )
}

/// The folder with the model is not there: the node says so in events alone.
pub(super) fn no_volume(world: &mut World<'_>) -> Result<String> {
    world.settle(&beside(1))?;
    let mut bad = beside(1);
    bad["spec"]["pipeline"]["stages"][0]["podTemplate"] = json!({"spec": {
        "volumes": [{"name": "extra", "hostPath": {"path": "/none/such", "type": "Directory"}}],
        "containers": [{"name": "ds4", "volumeMounts": [{"name": "extra", "mountPath": "/extra"}]}],
    }});
    named(
        world,
        &bad,
        "Degraded",
        "FailedMount",
        &["flash-early-", "/none/such", "spec.model.source"],
    )
}

/// A pod that ends again and again is replaced after a while, and the one after that is kept, with the reason.
pub(super) fn given_up(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&beside(1))?;
    let mut bad = beside(1);
    // The micro model has three layers.
    bad["spec"]["pipeline"]["stages"] = json!([
        {"name": "early", "layers": {"first": 0, "last": 7}},
        {"name": "output", "layers": {"first": 8}},
    ]);
    bad["spec"]["failurePolicy"] =
        json!({"maxRestarts": 1, "maxReplacements": 1, "backoff": {"baseSeconds": 2, "maxSeconds": 2}});
    let (told, report) = world.under_load(&address, 0, |world| {
        world.apply(&bad)?;
        let replaced = world.until("replaced", |deployment| deployment["status"]["replacements"] == 1)?;
        let failed = world.until_says("Failed", "True", "MaxRestartsExceeded")?;
        let message = world.message("Failed")?;
        for word in ["expected", "delete the pod"] {
            ensure!(message.contains(word), "the message has no {word:?}: {message}");
        }
        let pod = message
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .trim_end_matches(':')
            .to_owned();
        let of = |world: &World<'_>, path: &str| {
            let path = format!("jsonpath={path}");
            world.cluster.kubectl(&["get", "pod", &pod, "-o", &path])
        };
        let uid = of(world, "{.metadata.uid}")?;
        std::thread::sleep(std::time::Duration::from_secs(5));
        ensure!(of(world, "{.metadata.uid}")? == uid, "pod {pod} was not kept");
        let replaced_again = world.get()?["status"]["replacements"] != 1;
        ensure!(!replaced_again, "it was replaced once more");
        world.apply(&beside(1))?;
        world.rest()?;
        Ok(format!(
            "replaced after {}, failed {} later: {message}",
            seconds(replaced),
            seconds(failed)
        ))
    })?;
    let left = world.message("Failed")?;
    ensure!(left == "no pod was given up", "{FLASH} still says: {left}");
    Ok(format!("{told}; {}", report.summary()))
}

/// Certificates that nobody may keep are told, and pods are not left waiting for a Secret.
pub(super) fn no_certificates(world: &mut World<'_>) -> Result<String> {
    world.clear()?;
    world.operators(0)?;
    let listen = ["--managed-certificates", "false", "--listen", "127.0.0.1:8081"];
    let operator = world.operator("operator-uncertified", &listen)?;
    let outcome = named(
        world,
        &beside(1),
        "PipelineReady",
        "CertificatesNotManaged",
        &["certificates.managed", "CertManager"],
    );
    operator.end(std::time::Duration::from_secs(5));
    let pods = world.pods(None);
    world.operators(2)?;
    ensure!(
        outcome.is_err() || pods?.is_empty(),
        "pods were made all the same"
    );
    outcome
}

/// A model name is for life.
pub(super) fn immutable(world: &mut World<'_>) -> Result<String> {
    world.settle(&beside(1))?;
    let mut other = beside(1);
    other["spec"]["model"]["name"] = "another".into();
    match world.apply(&other) {
        Ok(()) => anyhow::bail!("another model name was accepted"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(
                said.contains("spec.model.name is immutable"),
                "it was refused with: {said}"
            );
            Ok("refused: spec.model.name is immutable".to_owned())
        }
    }
}
