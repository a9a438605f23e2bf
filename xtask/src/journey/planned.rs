//! Changes that people make: none may cost a request.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, beside, flash, seconds};
use crate::images::Name;

/// Another name of the engine's image.
const OTHER_IMAGE: &str = "localhost/ds4:other";

/// Settles one manifest, then changes to another under load.
fn change(world: &mut World<'_>, from: &Value, to: &Value) -> Result<String> {
    let address = world.settle(from)?;
    let before = world.get()?["status"]["currentRevision"].clone();
    let (took, report) = world.under_load(&address, 0, |world| {
        world.apply(to)?;
        world.rest()
    })?;
    let after = world.get()?["status"]["currentRevision"].clone();
    ensure!(before != after, "the revision is still {before}");
    Ok(format!("rolled out in {}; {}", seconds(took), report.summary()))
}

/// A pipeline at a time, the other one serving.
pub(super) fn image_in_place(world: &mut World<'_>) -> Result<String> {
    world.cluster.tag(Name::Engine.reference(), OTHER_IMAGE)?;
    let mut to = flash(2);
    to["spec"]["image"] = json!({"repository": "localhost/ds4", "tag": "other", "pullPolicy": "Never"});
    change(world, &flash(2), &to)
}

/// The new pipeline beside the only old one.
pub(super) fn image_beside(world: &mut World<'_>) -> Result<String> {
    world.cluster.tag(Name::Engine.reference(), OTHER_IMAGE)?;
    let from = beside(1);
    let mut to = from.clone();
    to["spec"]["image"] = json!({"repository": "localhost/ds4", "tag": "other", "pullPolicy": "Never"});
    change(world, &from, &to)
}

/// Every answer is the old model's or the new one's.
pub(super) fn model(world: &mut World<'_>) -> Result<String> {
    let mut to = beside(1);
    to["spec"]["model"]["source"]["synthetic"]["seed"] = 8.into();
    change(world, &beside(1), &to)
}

/// Two stages become three; the answers stay the same, bit for bit.
pub(super) fn split(world: &mut World<'_>) -> Result<String> {
    let mut to = beside(1);
    to["spec"]["pipeline"]["stages"] = json!([
        {"name": "early", "layers": {"first": 0, "last": 0}},
        {"name": "middle", "layers": {"first": 1, "last": 1}},
        {"name": "output", "layers": {"first": 2}},
    ]);
    change(world, &beside(1), &to)
}

/// An option of the engine.
pub(super) fn option(world: &mut World<'_>) -> Result<String> {
    let mut to = beside(1);
    to["spec"]["pipeline"]["window"] = 2.into();
    change(world, &beside(1), &to)
}

/// Through the scale subresource, as an autoscaler does.
pub(super) fn scale(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&beside(1))?;
    let (times, report) = world.under_load(&address, 0, |world| {
        let mut times = Vec::new();
        for replicas in ["3", "1"] {
            let scale = ["scale", "ds4", FLASH, "--replicas", replicas];
            world.cluster.kubectl(&scale)?;
            times.push(seconds(world.rest()?));
        }
        Ok(times.join(" and "))
    })?;
    Ok(format!("1 → 3 → 1 in {times}; {}", report.summary()))
}

/// Paused, nothing is replaced; resumed, it goes on.
pub(super) fn pause(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&beside(1))?;
    let mut to = beside(1);
    to["spec"]["pipeline"]["window"] = 3.into();
    to["spec"]["rollout"]["paused"] = true.into();
    let (took, report) = world.under_load(&address, 0, |world| {
        let before = world.pods(None)?;
        world.apply(&to)?;
        world.until_says("Progressing", "False", "Paused")?;
        std::thread::sleep(Duration::from_secs(3));
        ensure!(world.pods(None)? == before, "pods changed while paused");
        to["spec"]["rollout"]["paused"] = false.into();
        world.apply(&to)?;
        world.rest()
    })?;
    Ok(format!(
        "resumed and rolled out in {}; {}",
        seconds(took),
        report.summary()
    ))
}

/// An image that does not exist: the rollout stops, the old revision serves, and going back needs no pods.
pub(super) fn bad_image(world: &mut World<'_>) -> Result<String> {
    let mut good = beside(1);
    good["spec"]["rollout"]["progressDeadlineSeconds"] = 10.into();
    let address = world.settle(&good)?;
    let mut bad = good.clone();
    bad["spec"]["image"] = json!({"repository": "localhost/ds4", "tag": "missing", "pullPolicy": "Never"});
    let ((detected, stopped, back), report) = world.under_load(&address, 0, |world| {
        world.apply(&bad)?;
        let detected = world.until_says("Degraded", "True", "ImagePullFailed")?;
        let stopped = world.until_says("Progressing", "False", "ProgressDeadlineExceeded")?;
        let message = world.message("Degraded")?;
        ensure!(
            message.contains("localhost/ds4:missing"),
            "the message: {message}"
        );
        world.apply(&good)?;
        Ok((detected, stopped, world.rest()?))
    })?;
    Ok(format!(
        "named after {}, stopped after {} more, back in {}; {}",
        seconds(detected),
        seconds(stopped),
        seconds(back),
        report.summary()
    ))
}

/// An engine that fails again and again: given up after `maxRestarts`, with its own words.
pub(super) fn crash_loop(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&beside(1))?;
    let mut bad = beside(1);
    // The micro model has three layers.
    bad["spec"]["pipeline"]["stages"] = json!([
        {"name": "early", "layers": {"first": 0, "last": 7}},
        {"name": "output", "layers": {"first": 8}},
    ]);
    let ((given_up, back), report) = world.under_load(&address, 0, |world| {
        world.apply(&bad)?;
        let given_up = world.until_says("Progressing", "False", "MaxRestartsExceeded")?;
        let message = world.message("Progressing")?;
        ensure!(
            message.contains("expected") && message.contains("old revision"),
            "the message: {message}"
        );
        world.apply(&beside(1))?;
        Ok((given_up, world.rest()?))
    })?;
    Ok(format!(
        "given up after {}, back in {}; {}",
        seconds(given_up),
        seconds(back),
        report.summary()
    ))
}

/// A node is drained: its pods move, within the budget.
pub(super) fn drain(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(2))?;
    let output = world.pods(Some("output"))?.remove(0);
    let node = format!("node{}", world.node_of(&output)?);
    let (took, report) = world.under_load(&address, 0, |world| {
        let drain = [
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=120s",
            "--pod-selector=ds4.dev/name",
        ];
        let drained = world.cluster.kubectl(&drain);
        let rest = drained.and_then(|_| world.rest());
        world.cluster.kubectl(&["uncordon", &node])?;
        rest
    })?;
    Ok(format!(
        "at rest {} after the drain; {}",
        seconds(took),
        report.summary()
    ))
}
