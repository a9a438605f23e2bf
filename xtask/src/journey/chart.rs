//! The chart and the definition change under living deployments.

use anyhow::{Result, bail, ensure};

use super::world::{FLASH, World, flash};
use crate::demo::SYSTEM;

/// Upgraded and rolled back: the pods of deployments do not notice.
pub(super) fn upgraded(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let before = uids(world)?;
    let ((), report) = world.under_load(&address, 0, |world| {
        let wait = ["--wait", "--timeout", "120s"];
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
        world.cluster.helm(&[&upgrade[..], &wait].concat())?;
        stored(world)?;
        world
            .cluster
            .helm(&[&["rollback", "ds4", "-n", SYSTEM][..], &wait].concat())?;
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

/// The stored object is one that the definition takes: it is read and written back as it is.
fn stored(world: &World<'_>) -> Result<()> {
    let text = world.cluster.kubectl(&["get", "ds4", FLASH, "-o", "json"])?;
    let file = world.cluster.folder().join("stored.json");
    std::fs::write(&file, &text)?;
    let file = file.display().to_string();
    world.cluster.kubectl(&["replace", "-f", &file])?;
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
