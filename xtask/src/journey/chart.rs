//! The chart and the definition change under living deployments.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, flash};
use crate::demo::SYSTEM;
use crate::{golden, process, repository};

/// How long helm may wait.
const WAIT: [&str; 3] = ["--wait", "--timeout", "120s"];

/// Every set of values renders to what is kept.
pub(super) fn golden(_: &mut World<'_>) -> Result<String> {
    let sets = golden::run(true)?;
    Ok(format!(
        "{sets} sets of values render to the files in charts/golden"
    ))
}

/// From the chart before this one to this one, back, and up again: pods stay, and a stored object keeps all but what the older definition
/// does not know.
pub(super) fn from_older(world: &mut World<'_>) -> Result<String> {
    let older = older(world)?;
    let older = older.display().to_string();
    // Back to the older chart first: what a user has had for long.
    world.cluster.helm(
        &[
            &["upgrade", "ds4", &older, "-n", SYSTEM, "--reuse-values"][..],
            &WAIT,
        ]
        .concat(),
    )?;
    let mut manifest = flash(1);
    manifest["spec"]["failurePolicy"] = json!({"maxRestarts": 3});
    let address = world.settle(&manifest)?;
    let (before, written) = (uids(world)?, spec(world)?);
    let (after, report) = world.under_load(&address, 0, |world| {
        let upgrade = ["upgrade", "ds4", "charts/ds4", "-n", SYSTEM, "--reuse-values"];
        world.cluster.helm(&[&upgrade[..], &WAIT].concat())?;
        world.rest()?;
        let mut newer = spec(world)?;
        ensure!(
            *without_new(&mut newer) == written,
            "upgraded: {newer}, written {written}"
        );
        // A field of the newer definition, and back to the one that does not know it.
        manifest["spec"]["failurePolicy"]["maxReplacements"] = 2.into();
        world.apply(&manifest)?;
        ensure!(
            spec(world)?["failurePolicy"]["maxReplacements"] == 2,
            "the new field is not there"
        );
        world
            .cluster
            .helm(&[&["rollback", "ds4", "-n", SYSTEM][..], &WAIT].concat())?;
        world.rest()?;
        ensure!(
            spec(world)? == written,
            "downgraded: {}, written {written}",
            spec(world)?
        );
        stored(world)?;
        world.cluster.helm(&[&upgrade[..], &WAIT].concat())?;
        world.rest()?;
        stored(world)?;
        let mut newest = spec(world)?;
        ensure!(
            *without_new(&mut newest) == written,
            "upgraded again: {newest}, written {written}"
        );
        uids(world)
    })?;
    ensure!(before == after, "pods before {before}, after {after}");
    Ok(format!(
        "up, down and up again with the same pods and spec; {}",
        report.summary()
    ))
}

/// Fields that the older definition does not have: of what is asked for, since the operator of today runs with both.
const NEW: [&str; 2] = ["maxReplacements", "backoff"];

fn without_new(spec: &mut Value) -> &Value {
    if let Some(policy) = spec["failurePolicy"].as_object_mut() {
        policy.retain(|key, _| !NEW.contains(&key.as_str()));
    }
    spec
}

fn spec(world: &World<'_>) -> Result<Value> {
    Ok(world.get()?["spec"].take())
}

/// This chart as it was one version ago: with a definition that lacks the newest fields.
fn older(world: &World<'_>) -> Result<PathBuf> {
    let (from, to) = (
        repository::root().join("charts/ds4"),
        world.cluster.folder().join("chart-older"),
    );
    let _ = std::fs::remove_dir_all(&to);
    process::output(std::process::Command::new("cp").arg("-r").arg(&from).arg(&to))?;
    let plain = std::fs::read_to_string(repository::root().join("crds/ds4deployments.yaml"))?;
    let mut definition: Value = serde_yaml::from_str(&plain)?;
    let mut forgotten = 0;
    for version in definition["spec"]["versions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        let policy =
            &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["failurePolicy"];
        for field in NEW {
            let gone = [
                policy["properties"]
                    .as_object_mut()
                    .and_then(|all| all.remove(field)),
                policy["default"]
                    .as_object_mut()
                    .and_then(|all| all.remove(field)),
            ];
            forgotten += gone.iter().flatten().count();
        }
    }
    ensure!(forgotten >= NEW.len(), "the definition has no {NEW:?}");
    definition["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
    write(
        &to.join("templates/crd.yaml"),
        &serde_yaml::to_string(&definition)?,
    )?;
    let about = std::fs::read_to_string(to.join("Chart.yaml"))?;
    let older: Vec<&str> = about
        .lines()
        .map(|line| {
            if line.starts_with("version:") {
                "version: 0.0.9"
            } else {
                line
            }
        })
        .collect();
    write(&to.join("Chart.yaml"), &older.join("\n"))?;
    Ok(to)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

/// Upgraded and rolled back: the pods of deployments do not notice.
pub(super) fn upgraded(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let before = uids(world)?;
    let ((), report) = world.under_load(&address, 0, |world| {
        let upgrade = [
            "upgrade",
            "ds4",
            "charts/ds4",
            "-n",
            SYSTEM,
            "--reuse-values",
            "--set",
            "logFormat=json",
        ];
        world.cluster.helm(&[&upgrade[..], &WAIT].concat())?;
        stored(world)?;
        world
            .cluster
            .helm(&[&["rollback", "ds4", "-n", SYSTEM][..], &WAIT].concat())?;
        world.rest()?;
        stored(world)
    })?;
    let after = uids(world)?;
    ensure!(before == after, "pods before {before}, after {after}");
    Ok(format!("the same pods before and after; {}", report.summary()))
}

fn uids(world: &World<'_>) -> Result<String> {
    let (selector, path) = (
        format!("-lds4.dev/name={FLASH}"),
        "jsonpath={.items[*].metadata.uid}",
    );
    world.cluster.kubectl(&["get", "pods", &selector, "-o", path])
}

/// An operator that watches one namespace needs no right in another.
pub(super) fn one_namespace(world: &mut World<'_>) -> Result<String> {
    world.settle(&flash(1))?;
    let upgrade = [
        "upgrade",
        "ds4",
        "charts/ds4",
        "-n",
        SYSTEM,
        "--reuse-values",
        "--set",
        "watchNamespace=default",
    ];
    world.cluster.helm(&[&upgrade[..], &WAIT].concat())?;
    let outcome = watched(world);
    world
        .cluster
        .helm(&[&["rollback", "ds4", "-n", SYSTEM][..], &WAIT].concat())?;
    outcome
}

fn watched(world: &World<'_>) -> Result<String> {
    let mut manifest = flash(1);
    manifest["spec"]["pipeline"]["window"] = 6.into();
    world.apply(&manifest)?;
    let took = world.rest()?;
    let user = format!("--as=system:serviceaccount:{SYSTEM}:ds4");
    for (verb, what) in [
        ("list", "pods"),
        ("get", "secrets"),
        ("create", "statefulsets.apps"),
    ] {
        let may = |namespace| {
            world
                .cluster
                .kubectl(&["auth", "can-i", verb, what, "-n", namespace, &user])
        };
        may("default").with_context(|| format!("{verb} {what} in its own namespace"))?;
        ensure!(may("kube-system").is_err(), "it may {verb} {what} elsewhere");
    }
    Ok(format!(
        "rolled out in {:.1} s with rights in one namespace",
        took.as_secs_f64()
    ))
}

/// The stored object is one that the definition takes: it is read and written back as it is.
fn stored(world: &World<'_>) -> Result<()> {
    let text = world.cluster.kubectl(&["get", "ds4", FLASH, "-o", "json"])?;
    let file = world.cluster.folder().join("stored.json");
    std::fs::write(&file, &text)?;
    let file = file.display().to_string();
    // As it is: `kubectl replace` would note what it writes for the next `kubectl apply`, with the fields that are the server's.
    let path = format!("/apis/ds4.dev/v1alpha1/namespaces/default/ds4deployments/{FLASH}");
    world.cluster.kubectl(&["replace", "--raw", &path, "-f", &file])?;
    let again = world.cluster.kubectl(&["get", "ds4", FLASH, "-o", "json"])?;
    let spec = |text: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_str::<serde_json::Value>(text)?["spec"].take())
    };
    ensure!(
        spec(&text)? == spec(&again)?,
        "the spec changed on its way: {text} {again}"
    );
    Ok(())
}

/// Values that mean nothing are refused before anything is rendered.
pub(super) fn bad_values(world: &mut World<'_>) -> Result<String> {
    let bad = [
        "replicas=-1",
        "replicas=many",
        "image.repository=",
        "image.digest=latest",
        "image.pullPolicy=Sometimes",
        "logFormat=xml",
        "certificates.lifetimeSeconds=1",
        "certificates.managed=perhaps",
        "crds.install=maybe",
        "engine.image.colour=red",
        "watchNamespace={a}",
        "monitoring.podMonitor.interval=soon",
        "monitoring.dashboard.labels=none",
        "extraEnv=A",
        "tolerations=none",
        "imagePullSecrets[0].user=x",
        "no.such.value=1",
    ];
    for value in bad {
        match world
            .cluster
            .helm(&["template", "ds4", "charts/ds4", "--set", value])
        {
            Ok(_) => bail!("{value} was accepted"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains("schema"), "{value} was refused with: {said}");
            }
        }
    }
    Ok(format!("refused by the schema: {}", bad.join(", ")))
}
