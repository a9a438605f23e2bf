//! What people get wrong: each has a reason of its own, and a message that names what was expected and what was found.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::world::{World, beside};

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
