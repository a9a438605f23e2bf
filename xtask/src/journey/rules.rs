//! The rules of the definition, on a real API server: each refuses what it is there for, and lets pass what is sound.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, beside};
use crate::repository;

/// Every rule is seen to refuse one of `examples/invalid` (or a change, where it is about changes), and every sound counterpart passes.
pub(super) fn refused_and_accepted(world: &mut World<'_>) -> Result<String> {
    let rules = rules()?;
    let mut said = String::new();
    let mut examples = 0;
    for entry in std::fs::read_dir(repository::root().join("examples/invalid"))? {
        let file = entry?.path().display().to_string();
        said += &refusal(world, &["create", "--dry-run=server", "-f", &file])?;
        examples += 1;
    }
    world.apply(&flash_alone())?;
    let patch = json!({"spec": {"model": {"name": "another"}}}).to_string();
    said += &refusal(
        world,
        &[
            "patch",
            "ds4",
            FLASH,
            "--dry-run=server",
            "--type=merge",
            "-p",
            &patch,
        ],
    )?;
    let unseen: Vec<&String> = rules
        .iter()
        .filter(|rule| !said.contains(rule.as_str()))
        .collect();
    ensure!(unseen.is_empty(), "no example is refused by {unseen:?}");
    let sound = sound();
    let file = world.cluster.folder().join("sound.json");
    std::fs::write(
        &file,
        json!({"apiVersion": "v1", "kind": "List", "items": &sound}).to_string(),
    )?;
    let file = file.display().to_string();
    let accepted = world
        .cluster
        .kubectl(&["create", "--dry-run=server", "-f", &file])?;
    ensure!(accepted.lines().count() == sound.len(), "accepted: {accepted}");
    Ok(format!(
        "{} rules; {examples} examples and a change refused, each by a rule's own words; {} sound deployments accepted",
        rules.len(),
        sound.len()
    ))
}

/// The rules' messages. That the API server took the definition says that their cost is within its limits.
fn rules() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(repository::root().join("crds/ds4deployments.yaml"))?;
    let mut all = Vec::new();
    collect(&serde_yaml::from_str(&text)?, &mut all);
    ensure!(all.len() > 10, "only {} rules were found", all.len());
    Ok(all)
}

fn collect(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let rules = object.get("x-kubernetes-validations").and_then(Value::as_array);
            for rule in rules.into_iter().flatten() {
                all.extend(rule["message"].as_str().map(str::to_owned));
            }
            object.values().for_each(|value| collect(value, all));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, all)),
        _ => {}
    }
}

fn refusal(world: &World<'_>, arguments: &[&str]) -> Result<String> {
    match world.cluster.kubectl(arguments) {
        Ok(said) => bail!("{} was accepted: {said}", arguments.join(" ")),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains("is invalid"), "{}: {said}", arguments.join(" "));
            Ok(said)
        }
    }
}

/// Without pods: what is asked of it is only that it stands.
fn flash_alone() -> Value {
    let mut manifest = beside(0);
    manifest["spec"]["security"]["mtls"]["mode"] = "Disabled".into();
    manifest
}

/// For every rule a deployment that is as near to a refused one as can be.
fn sound() -> Vec<Value> {
    let changes = [
        json!({"image": {"repository": "x/ds4", "tag": "1"}}),
        json!({"image": {"repository": "x/ds4", "digest": "sha256:0"}}),
        json!({"model": {"cache": {"hostPath": "/var/cache/ds4", "size": "1Gi"}}}),
        json!({"model": {"cache": {"storageClassName": "fast", "size": "1Gi"}}}),
        json!({"model": {"cache": {"size": "1Gi"}}}),
        json!({"model": {"source": {"synthetic": null, "http": {"url": "https://mirror.example/tiny.gguf"}}}}),
        json!({"model": {"source": {"synthetic": null, "hostPath": {"path": "/models/tiny.gguf"}}}}),
        json!({"pipeline": {"stages": [{"name": "output", "layers": {"first": 0}}]}}),
        json!({"pipeline": {"stages": stages(16)}}),
        json!({"pipeline": {"stages": [
            {"name": "output", "layers": {"first": 5}}, {"name": "early", "layers": {"first": 0, "last": 4}}]}}),
        json!({"pipeline": {"stages": [
            {"name": "one", "layers": {"first": 0, "last": 0}}, {"name": "output", "layers": {"first": 1}}]}}),
        json!({"rollout": {"maxUnavailable": 0, "maxSurge": 1}}),
        json!({"rollout": {"maxUnavailable": 1, "maxSurge": 0}}),
        json!({"security": {"mtls": {"mode": "CertManager", "issuerRef": {"name": "ca"}}}}),
        json!({"security": {"mtls": {"mode": "Disabled"}}}),
        json!({"failurePolicy": {"maxReplacements": 3, "backoff": {"baseSeconds": 7, "maxSeconds": 7}}}),
    ];
    let sound = changes.iter().enumerate().map(|(number, change)| {
        let mut manifest = beside(1);
        manifest["metadata"]["name"] = format!("sound-{number}").into();
        merge(&mut manifest["spec"], change);
        manifest
    });
    let mut all: Vec<Value> = sound.collect();
    // 36 characters, and 6 of the longest stage.
    let mut longest = beside(1);
    longest["metadata"]["name"] = "a".repeat(36).into();
    all.push(longest);
    all
}

/// As many stages as may be, in an order that is not theirs.
fn stages(count: usize) -> Vec<Value> {
    let mut all: Vec<Value> = (0..count)
        .map(|number| {
            let last = (number + 1 < count).then_some(2 * number + 1);
            json!({"name": format!("s{number}"), "layers": {"first": 2 * number, "last": last}})
        })
        .collect();
    for stage in &mut all {
        if stage["layers"]["last"].is_null()
            && let Some(layers) = stage["layers"].as_object_mut()
        {
            layers.remove("last");
        }
    }
    all.reverse();
    all
}

/// RFC 7396.
fn merge(base: &mut Value, change: &Value) {
    let (Value::Object(base), Value::Object(change)) = (&mut *base, change) else {
        *base = change.clone();
        return;
    };
    for (key, value) in change {
        if value.is_null() {
            base.remove(key);
        } else {
            merge(base.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn rules_are_found_and_sound_deployments_differ() -> Result<()> {
        ensure!(
            rules()?.iter().any(|rule| rule.contains("immutable")),
            "the rule about changes"
        );
        let sound = sound();
        let http = sound
            .iter()
            .find(|one| !one["spec"]["model"]["source"]["http"].is_null());
        let source = &http.context("one with http")?["spec"]["model"]["source"];
        ensure!(source["synthetic"].is_null(), "{source}");
        Ok(())
    }
}
