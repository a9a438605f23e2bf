//! What happens to a cluster: answers go on, or fail within announced bounds, and everything comes back without help.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::world::{World, flash, message, says, seconds, with_window};

/// Requests that one killed output pod may take with it: those that run on it and, of each of the load's clients, the next one.
const OF_ONE_OUTPUT_POD: usize = 6;
/// A lost stage is whole again within this, once its pod runs.
const WHOLE_AGAIN: Duration = Duration::from_secs(10);

/// The process of a prefill stage is killed: every request is answered.
pub(super) fn kill_stage(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let pod = world.pods(Some("early"))?.remove(0);
    let ((degraded, recovered), report) = world.under_load(&address, 0, |world| {
        let start = Instant::now();
        world.cluster.kill_container(&pod)?;
        world.until("degraded", |deployment| {
            says(deployment, "Degraded", "True", "StagesNotReady")
                || says(deployment, "Degraded", "True", "ContainerFailed")
        })?;
        let degraded = start.elapsed();
        world.rest()?;
        Ok((degraded, start.elapsed()))
    })?;
    ensure!(
        recovered < WHOLE_AGAIN,
        "whole again after {}, expected within {}",
        seconds(recovered),
        seconds(WHOLE_AGAIN)
    );
    Ok(format!(
        "degraded after {}, whole after {}; {}",
        seconds(degraded),
        seconds(recovered),
        report.summary()
    ))
}

/// The process of an output pod is killed: only its own requests end, and the other pipeline goes on.
pub(super) fn kill_output(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(2))?;
    let pod = world.pods(Some("output"))?.remove(0);
    kill(world, &address, OF_ONE_OUTPUT_POD, |world| {
        world.cluster.kill_container(&pod)
    })
}

/// A stage's pod is deleted without notice.
pub(super) fn delete_stage(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let pods = world.pods(Some("early"))?;
    kill(world, &address, 0, |world| delete(world, &pods))
}

/// All pods of one of two pipelines are deleted without notice.
pub(super) fn delete_pipeline(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(2))?;
    let pods: Vec<String> = world
        .pods(None)?
        .into_iter()
        .filter(|pod| pod.ends_with("-1"))
        .collect();
    kill(world, &address, OF_ONE_OUTPUT_POD, |world| delete(world, &pods))
}

/// An output pod is deleted in peace: nobody notices.
pub(super) fn evict_output(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(2))?;
    let pod = world.pods(Some("output"))?.remove(0);
    kill(world, &address, 0, |world| {
        world.cluster.kubectl(&["delete", "pod", &pod]).map(drop)
    })
}

/// A stage's pod is deleted in peace: it hands over what it has begun before it ends.
pub(super) fn evict_stage(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let pod = world.pods(Some("early"))?.remove(0);
    kill(world, &address, 0, |world| {
        world.cluster.kubectl(&["delete", "pod", &pod]).map(drop)
    })
}

/// A stage stands still for a while, as one does that compiles or swaps: its requests are computed by the output pod, and nobody restarts it.
pub(super) fn stall_stage(world: &mut World<'_>) -> Result<String> {
    const STALL: Duration = Duration::from_secs(30);
    let address = world.settle(&flash(1))?;
    let pod = world.pods(Some("early"))?.remove(0);
    let (recovered, report) = world.under_load(&address, 0, |world| {
        world.cluster.pause_container(&pod, true)?;
        std::thread::sleep(STALL);
        world.cluster.pause_container(&pod, false)?;
        world.rest()
    })?;
    let path = "jsonpath={.status.containerStatuses[0].restartCount}";
    let restarts = world.cluster.kubectl(&["get", "pod", &pod, "-o", path])?;
    ensure!(restarts == "0", "it was restarted {restarts} times");
    Ok(format!(
        "still for {} s, not restarted, whole {} later; {}",
        STALL.as_secs(),
        seconds(recovered),
        report.summary()
    ))
}

/// No stage ever comes: the output pod takes no requests that it would have to compute alone from the first on, and the conditions say why.
pub(super) fn no_stage(world: &mut World<'_>) -> Result<String> {
    world.clear()?;
    let mut manifest = flash(1);
    manifest["spec"]["handoff"]["policy"] = "Always".into();
    manifest["spec"]["pipeline"]["stages"][0]["podTemplate"]["spec"]["nodeSelector"]["disk"] =
        "none-such".into();
    world.apply(&manifest)?;
    world.until_says("Degraded", "True", "Unschedulable")?;
    // While the output pod loads, that is what stands there.
    let took = world.until("the message names the stage", |deployment| {
        says(deployment, "HandoffReady", "False", "RouteIncomplete")
            && message(deployment, "HandoffReady").contains("flash-early-")
    })?;
    world.until_says("Available", "False", "NoPipelineAnswers")?;
    let why = world.message("HandoffReady")?;
    world.clear()?;
    Ok(format!("not available, named after {}: {why}", seconds(took)))
}

fn delete(world: &World<'_>, pods: &[String]) -> Result<()> {
    let mut delete = vec!["delete", "pod", "--grace-period=0", "--force"];
    delete.extend(pods.iter().map(String::as_str));
    world.cluster.kubectl(&delete).map(drop)
}

/// Does it under load, sees the deployment degrade and come to rest.
fn kill(
    world: &mut World<'_>,
    address: &str,
    failures: usize,
    work: impl FnOnce(&mut World<'_>) -> Result<()>,
) -> Result<String> {
    let ((degraded, recovered), report) = world.under_load(address, failures, |world| {
        let start = Instant::now();
        work(world)?;
        world.until("degraded", |deployment| {
            let conditions = deployment["status"]["conditions"].as_array();
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|known| known["type"] == "Degraded" && known["status"] == "True")
            })
        })?;
        let degraded = start.elapsed();
        world.rest()?;
        Ok((degraded, start.elapsed()))
    })?;
    Ok(format!(
        "degraded after {}, whole after {}; {}",
        seconds(degraded),
        seconds(recovered),
        report.summary()
    ))
}

/// The node of a prefill stage loses its network for a while: answers go on, and the stage comes back by itself.
pub(super) fn cut_node(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&on_nodes("node3", "node1"))?;
    let ((degraded, recovered), report) = world.under_load(&address, 0, |world| {
        let start = Instant::now();
        world.cluster.plug(3, false)?;
        let outcome = world.until("degraded", |deployment| {
            says(deployment, "Degraded", "True", "StagesNotReady")
        });
        let degraded = start.elapsed();
        world.cluster.plug(3, true)?;
        outcome?;
        let back = Instant::now();
        world.rest()?;
        Ok((degraded, back.elapsed()))
    })?;
    Ok(format!(
        "degraded after {}, whole {} after it was plugged in; {}",
        seconds(degraded),
        seconds(recovered),
        report.summary()
    ))
}

/// One pipeline with its stage on one node and its output pod on another.
fn on_nodes(early: &str, output: &str) -> serde_json::Value {
    let mut manifest = flash(1);
    for (stage, node) in [(0, early), (1, output)] {
        manifest["spec"]["pipeline"]["stages"][stage]["podTemplate"]["spec"]["nodeSelector"]["kubernetes.io/hostname"] =
            node.into();
    }
    manifest
}

/// The API server is away for a minute, and a stage dies meanwhile: answers go on, and nothing has to be done afterwards.
pub(super) fn api_away(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let pod = world.pods(Some("early"))?.remove(0);
    let (recovered, report) = world.under_load(&address, 0, |world| {
        world.cluster.kill_container(&pod)?;
        world.cluster.stop_api()?;
        std::thread::sleep(Duration::from_secs(60));
        world.cluster.start_api()?;
        world.rest()
    })?;
    Ok(format!(
        "whole {} after it was back; {}",
        seconds(recovered),
        report.summary()
    ))
}

/// The operator that leads is killed in the middle of a rollout: the other one finishes it.
pub(super) fn kill_leader(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&with_window(4))?;
    let (took, report) = world.under_load(&address, 0, |world| {
        world.apply(&with_window(5))?;
        let path = "jsonpath={.spec.holderIdentity}";
        let lease = [
            "get",
            "lease",
            "ds4-operator",
            "-n",
            crate::demo::SYSTEM,
            "-o",
            path,
        ];
        let leader = world.cluster.kubectl(&lease)?;
        let system = crate::demo::SYSTEM;
        let delete = [
            "delete",
            "pod",
            leader.trim(),
            "-n",
            system,
            "--grace-period=0",
            "--force",
        ];
        world.cluster.kubectl(&delete).context("the leader")?;
        world.rest()
    })?;
    Ok(format!(
        "rolled out {} after that; {}",
        seconds(took),
        report.summary()
    ))
}
