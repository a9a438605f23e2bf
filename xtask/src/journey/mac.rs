//! A Mac as a node, with a Linux process in its place: it joins, runs a stage, and lives through what nodes live through.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::load::exact;
use super::world::{FLASH, World, flash, says, seconds};
use crate::cluster::Mac;
use crate::process::{self, Started};

/// From the start of its runner to a Ready node, approval included.
const JOINS_WITHIN: Duration = Duration::from_secs(5);
/// What it may cost at rest: a share of one core, and bytes of memory.
const REST_CORE: f64 = 0.01;
const REST_MEMORY: u64 = 40 << 20;
/// How long to wait for what has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(90);

/// The deployment of the journeys with its prefill stage on the Mac.
fn on_the_mac() -> Value {
    let mut manifest = flash(1);
    manifest["spec"]["pipeline"]["stages"][0]["backend"] = "Metal".into();
    manifest
}

/// Looks until it is there.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed() < PATIENCE {
        match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("{what}: not within {} s; {last}", PATIENCE.as_secs())
}

/// The Mac, as a Ready node: it joins where it has not yet. How long that took, where it did.
fn joined(world: &World<'_>) -> Result<(Mac, Option<Duration>)> {
    let mac = world.cluster.mac()?;
    if mac.runner()?.is_some_and(|runner| runner.is_alive()) {
        return Ok((mac, None));
    }
    mac.set_up()?;
    let approval = mac.approve()?;
    let start = Instant::now();
    let runner = mac.start()?;
    until("the Mac is a Ready node", || {
        runner.check()?;
        Ok(is_ready(world)?.then_some(()))
    })?;
    let took = start.elapsed();
    until("its serving certificate is approved", || {
        Ok((!approval.is_alive()).then_some(()))
    })?;
    Ok((mac, Some(took)))
}

fn is_ready(world: &World<'_>) -> Result<bool> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    Ok(world.cluster.kubectl(&["get", "node", Mac::NODE, "-o", path])? == "True")
}

/// Ends it, after all journeys.
pub(super) fn leave(world: &World<'_>) -> Result<()> {
    let Ok(mac) = world.cluster.mac() else {
        return Ok(());
    };
    mac.remove()?;
    let delete = ["delete", "node", Mac::NODE, "--ignore-not-found"];
    world.cluster.kubectl(&delete).map(drop)
}

/// With the deployment at rest on it: where it answers, and the pod on the Mac.
fn serving(world: &mut World<'_>) -> Result<(Mac, String, String)> {
    let (mac, _) = joined(world)?;
    let address = world.settle(&on_the_mac())?;
    let pod = world.pods(Some("early"))?.remove(0);
    Ok((mac, address, pod))
}

fn pod(world: &World<'_>, name: &str) -> Result<Value> {
    let text = world.cluster.kubectl(&["get", "pod", name, "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// Process of the engine of the only pod, from the runner's own files.
fn engine(mac: &Mac) -> Result<i32> {
    let said = mac.status()?;
    let after = said
        .lines()
        .filter(|line| line.trim_start().starts_with("ds4 "))
        .find_map(|line| line.split("process ").nth(1));
    let pid = after.and_then(|after| after.split_whitespace().next());
    pid.and_then(|pid| pid.parse().ok()).with_context(|| said.clone())
}

fn kill_process(pid: i32) -> Result<()> {
    process::output(Command::new("kill").args(["-KILL", &pid.to_string()])).map(drop)
}

/// It joins within five seconds, serves a stage with the bits of an all-Linux pipeline, and refuses everything else.
pub(super) fn joins(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let linux = exact(&address, FLASH)?;
    let (mac, took) = joined(world)?;
    let address = world.settle(&on_the_mac())?;
    let with_mac = exact(&address, FLASH)?;
    ensure!(
        with_mac == linux,
        "with a stage on the Mac: {with_mac}\nall on Linux: {linux}"
    );
    let stage = world.pods(Some("early"))?.remove(0);
    truthful(world, &stage)?;
    refuses(world, &mac)?;
    logs(world, &stage)?;
    if let Some(took) = took {
        ensure!(
            took <= JOINS_WITHIN,
            "joined in {}, expected within {}",
            seconds(took),
            seconds(JOINS_WITHIN)
        );
    }
    Ok(format!(
        "joined in {}; answer and log-probabilities equal those of the all-Linux pipeline; refused a foreign pod, a path outside the root, logs to the unproven (401) and to those who may not (403)",
        took.map_or_else(|| "an earlier journey".into(), seconds)
    ))
}

/// The pod is on the Mac, has its address, and says which back end really computes.
fn truthful(world: &World<'_>, name: &str) -> Result<()> {
    let pod = pod(world, name)?;
    ensure!(
        pod["spec"]["nodeName"] == Mac::NODE && pod["status"]["podIP"] == Mac::ADDRESS,
        "node {} address {}",
        pod["spec"]["nodeName"],
        pod["status"]["podIP"]
    );
    let conditions = pod["status"]["conditions"].as_array().context("conditions")?;
    let said = conditions
        .iter()
        .find(|known| known["type"] == "ds4.dev/Arguments");
    let said = said.and_then(|said| said["message"].as_str()).unwrap_or_default();
    ensure!(
        said.contains("--backend cpu") && said.contains("asks for metal"),
        "the pod's condition ds4.dev/Arguments: {said:?}"
    );
    let log = world.cluster.kubectl(&["logs", name])?;
    let loaded = log
        .lines()
        .find(|line| line.contains("model loaded"))
        .context("the log of a loaded model")?;
    ensure!(
        loaded.contains("cpu") && !loaded.to_lowercase().contains("metal"),
        "the engine's own word: {loaded}"
    );
    let policy = world
        .cluster
        .kubectl(&["get", "networkpolicy", FLASH, "-o", "json"])?;
    ensure!(
        policy.contains(&format!("{}/32", Mac::ADDRESS)),
        "the policy does not admit the Mac's address: {policy}"
    );
    Ok(())
}

/// Pods that are bound to the Mac past the scheduler.
fn refuses(world: &World<'_>, mac: &Mac) -> Result<()> {
    let bound = |name: &str, image: &str, volume: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"ds4.dev/stage": "early"}},
            "spec": {
                "nodeName": Mac::NODE, "automountServiceAccountToken": false, "securityContext": {"runAsUser": 65532},
                "containers": [{"name": "c", "image": image, "args": ["stage"], "volumeMounts": [{"name": "v", "mountPath": "/models"}]}],
                "volumes": [volume],
            },
        })
    };
    let ours = crate::images::Name::Engine.reference();
    let outside = json!({"name": "v", "hostPath": {"path": "/etc"}});
    let link = mac.models().join("link");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink("/etc", &link)?;
    let through = json!({"name": "v", "hostPath": {"path": link.join("ssl")}});
    let cases = [
        (
            "foreign",
            bound(
                "foreign",
                "docker.io/library/nginx:1",
                json!({"name": "v", "emptyDir": {}}),
            ),
            "ImageNotAllowed",
        ),
        ("outside", bound("outside", ours, outside), "HostPathOutsideRoot"),
        (
            "through-a-link",
            bound("through-a-link", ours, through),
            "HostPathOutsideRoot",
        ),
    ];
    for (name, manifest, reason) in &cases {
        world.apply(manifest)?;
        until(&format!("pod {name} is refused"), || {
            let status = pod(world, name)?["status"].clone();
            Ok((status["phase"] == "Failed" && status["reason"] == *reason).then_some(()))
        })?;
        until(&format!("an event says why pod {name} is refused"), || {
            let field = format!("involvedObject.name={name},reason={reason}");
            let events =
                world
                    .cluster
                    .kubectl(&["get", "events", "--field-selector", &field, "-o", "name"])?;
            Ok((!events.is_empty()).then_some(()))
        })?;
        world
            .cluster
            .kubectl(&["delete", "pod", name, "--wait=true", "--timeout=30s"])?;
    }
    Ok(())
}

/// Logs go through the API server; whoever asks the node itself must prove who he is and that he may.
fn logs(world: &World<'_>, pod: &str) -> Result<()> {
    let url = format!(
        "https://{}:{}/containerLogs/default/{pod}/ds4",
        Mac::ADDRESS,
        Mac::PORT
    );
    let status = |headers: &[&str]| -> Result<String> {
        let mut command = world.cluster.inside("curl".as_ref())?;
        command.args([
            "--silent",
            "--insecure",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            &url,
        ]);
        headers.iter().for_each(|header| {
            command.args(["--header", header]);
        });
        process::output(&mut command)
    };
    let token = world.cluster.kubectl(&["create", "token", "default"])?;
    let found = [
        status(&[])?,
        status(&["Authorization: Bearer nonsense"])?,
        status(&[&format!("Authorization: Bearer {}", token.trim())])?,
    ];
    ensure!(
        found == ["401", "401", "403"],
        "without proof, with a wrong token, with a right one without rights: {found:?}"
    );
    let tail = world
        .cluster
        .kubectl(&["logs", pod, "--tail=1", "--timestamps"])?;
    let first = tail.split_whitespace().next().unwrap_or_default();
    ensure!(
        tail.lines().count() == 1 && first.ends_with('Z') && first.contains('T'),
        "the last line with its time: {tail:?}"
    );
    let bytes = world.cluster.kubectl(&["logs", pod, "--limit-bytes=7"])?;
    ensure!(bytes.len() == 7, "seven bytes: {bytes:?}");
    Ok(())
}

/// What the runner costs while its stage waits for work.
pub(super) fn rests(world: &mut World<'_>) -> Result<String> {
    const TIME: Duration = Duration::from_secs(30);
    let (mac, _, _) = serving(world)?;
    let runner = mac.runner()?.context("a runner")?;
    let before = ticks(runner.pid)?;
    std::thread::sleep(TIME);
    // Clock ticks of Linux' user space are hundredths of a second.
    let share = (ticks(runner.pid)? - before) / 100.0 / TIME.as_secs_f64();
    let memory = proportional(runner.pid)?;
    let shims = shims(runner.pid)?;
    let of_shims: u64 = shims.iter().map(|pid| proportional(*pid).unwrap_or(0)).sum();
    ensure!(
        share <= REST_CORE,
        "{:.2} % of a core, expected at most {:.0} %",
        share * 100.0,
        REST_CORE * 100.0
    );
    ensure!(
        memory + of_shims <= REST_MEMORY,
        "{memory} bytes and {of_shims} of the engines' parents, expected at most {REST_MEMORY}"
    );
    Ok(format!(
        "{:.2} % of a core over {} s, {:.1} MiB, and {:.1} MiB for the engine's parent",
        share * 100.0,
        TIME.as_secs(),
        mebibytes(memory),
        mebibytes(of_shims)
    ))
}

#[allow(clippy::cast_precision_loss)] // for a table
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// User and system time of a process in ticks: fields 14 and 15 of `/proc/PID/stat`.
fn ticks(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(") ").context("/proc/PID/stat")?.1;
    let times = fields.split(' ').skip(11).take(2);
    let times: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>()?;
    Ok(times.iter().sum())
}

/// Memory of a process, with its share of what several map: the runner and the engines' parents are one program.
fn proportional(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("Pss")?;
    let kibibytes: u64 = line.split_whitespace().next().context("Pss")?.parse()?;
    Ok(kibibytes * 1024)
}

/// Children of the runner: the engines' parents.
fn shims(pid: i32) -> Result<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

/// The runner is killed: its engine serves on and is taken over.
pub(super) fn kill_runner(world: &mut World<'_>) -> Result<String> {
    let (mac, address, stage) = serving(world)?;
    let before = engine(&mac)?;
    let (took, report) = world.under_load(&address, 0, |world| {
        kill_process(mac.runner()?.context("a runner")?.pid)?;
        std::thread::sleep(Duration::from_secs(2));
        let start = Instant::now();
        mac.start()?;
        until("the runner answers for its pod again", || {
            Ok(world.cluster.kubectl(&["logs", &stage, "--tail=1"]).ok())
        })?;
        world.rest()?;
        Ok(start.elapsed())
    })?;
    let (after, restarts) = (engine(&mac)?, restarts(world, &stage)?);
    ensure!(
        after == before && restarts == 0,
        "engine {before} before and {after} after, {restarts} restarts"
    );
    Ok(format!(
        "the same engine process, 0 restarts, answered for {} after the new start; {}",
        seconds(took),
        report.summary()
    ))
}

fn restarts(world: &World<'_>, name: &str) -> Result<i64> {
    let status = pod(world, name)?["status"]["containerStatuses"][0].clone();
    status["restartCount"].as_i64().context("restartCount")
}

/// The engine is killed: it starts again, and the status says what happened.
pub(super) fn kill_engine(world: &mut World<'_>) -> Result<String> {
    let (mac, address, stage) = serving(world)?;
    let before = engine(&mac)?;
    let (took, report) = world.under_load(&address, 0, |world| {
        let start = Instant::now();
        kill_process(before)?;
        until("another engine runs", || {
            Ok(engine(&mac).ok().filter(|pid| *pid != before))
        })?;
        world.rest()?;
        Ok(start.elapsed())
    })?;
    let status = pod(world, &stage)?["status"]["containerStatuses"][0].clone();
    let last = &status["lastState"]["terminated"];
    ensure!(
        status["restartCount"] == 1 && last["exitCode"] == 137 && last["signal"] == 9,
        "the container's status: {status}"
    );
    let previous = world.cluster.kubectl(&["logs", &stage, "--previous"])?;
    ensure!(
        previous.contains("model loaded"),
        "the log of the run before: {previous:?}"
    );
    Ok(format!(
        "whole after {}; one restart, exit 137 by signal 9 in its status, its log under --previous; {}",
        seconds(took),
        report.summary()
    ))
}

/// The Mac loses its network for a while.
pub(super) fn cut_off(world: &mut World<'_>) -> Result<String> {
    let (mac, address, _) = serving(world)?;
    let ((lost, degraded, back), report) = world.under_load(&address, 0, |world| {
        let start = Instant::now();
        mac.plug(false)?;
        let outcome = world
            .until("degraded", |deployment| {
                says(deployment, "Degraded", "True", "StagesNotReady")
            })
            .and_then(|degraded| {
                until("the node is not Ready", || Ok((!is_ready(world)?).then_some(())))?;
                Ok((start.elapsed(), degraded))
            });
        mac.plug(true)?;
        let (lost, degraded) = outcome?;
        let start = Instant::now();
        until("the node is Ready", || Ok(is_ready(world)?.then_some(())))?;
        world.rest()?;
        Ok((lost, degraded, start.elapsed()))
    })?;
    Ok(format!(
        "not Ready after {}, degraded after {}, whole {} after it was plugged in; {}",
        seconds(lost),
        seconds(degraded),
        seconds(back),
        report.summary()
    ))
}

/// `kubectl logs -f` follows the engine until its pod is deleted; `kubectl delete pod` stops it in peace, and another comes.
pub(super) fn follow_and_delete(world: &mut World<'_>) -> Result<String> {
    let (mac, address, stage) = serving(world)?;
    let before = engine(&mac)?;
    let mut follow = world.cluster.command("kubectl")?;
    follow.args(["logs", "-f", &stage]);
    let followed = Started::spawn(
        "kubectl-logs-f",
        &mut follow,
        &world.cluster.folder().join("logs"),
    )?;
    until("the log is followed", || {
        Ok(std::fs::read_to_string(&followed.log)?
            .contains("model loaded")
            .then_some(()))
    })?;
    ensure!(followed.is_alive(), "kubectl logs -f ended while the engine runs");
    let uid = pod(world, &stage)?["metadata"]["uid"].clone();
    let start = Instant::now();
    world
        .cluster
        .kubectl(&["delete", "pod", &stage, "--timeout=60s"])?;
    let took = start.elapsed();
    until("the followed log ends with its engine", || {
        Ok((!followed.is_alive()).then_some(()))
    })?;
    until("the engine is gone", || {
        Ok((!std::path::Path::new(&format!("/proc/{before}")).exists()).then_some(()))
    })?;
    world.rest()?;
    let after = pod(world, &stage)?["metadata"]["uid"].clone();
    ensure!(uid != after, "the pod is the same");
    world.answer(&address)?;
    Ok(format!(
        "followed to its end; deleted in {}, another pod serves",
        seconds(took)
    ))
}

/// A new revision takes the Mac's only device after the old one has left it.
pub(super) fn roll_out(world: &mut World<'_>) -> Result<String> {
    let (_, address, _) = serving(world)?;
    let before = world.answer(&address)?.text;
    let mut next = on_the_mac();
    next["spec"]["pipeline"]["window"] = 5.into();
    let start = Instant::now();
    world.apply(&next)?;
    world.rest()?;
    let took = start.elapsed();
    let stage = world.pods(Some("early"))?.remove(0);
    ensure!(
        pod(world, &stage)?["spec"]["nodeName"] == Mac::NODE,
        "the new stage is not on the Mac"
    );
    let after = world.answer(&address)?.text;
    ensure!(before == after, "before {before:?}, after {after:?}");
    Ok(format!("rolled out in {}", seconds(took)))
}

/// A drained Mac ends its stage in peace, and takes it back.
pub(super) fn drain(world: &mut World<'_>) -> Result<String> {
    let (mac, address, _) = serving(world)?;
    let before = engine(&mac)?;
    let start = Instant::now();
    let drained = world.cluster.kubectl(&[
        "drain",
        Mac::NODE,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=120s",
    ]);
    let gone = drained.and_then(|_| {
        let took = start.elapsed();
        ensure!(
            !std::path::Path::new(&format!("/proc/{before}")).exists(),
            "the engine {before} still runs"
        );
        Ok(took)
    });
    let back = Instant::now();
    world.cluster.kubectl(&["uncordon", Mac::NODE])?;
    let gone = gone?;
    world.rest()?;
    world.answer(&address)?;
    Ok(format!(
        "empty after {}, whole {} after it was uncordoned",
        seconds(gone),
        seconds(back.elapsed())
    ))
}

/// Memory that is short: the stage goes, the node says so, and no pod comes before there is more.
pub(super) fn evict(world: &mut World<'_>) -> Result<String> {
    let (mac, address, stage) = serving(world)?;
    let restart = |eviction: &str| {
        mac.configure(eviction)?;
        mac.runner()?.context("a runner")?.end(Duration::from_secs(5));
        mac.start()
    };
    let uid = pod(world, &stage)?["metadata"]["uid"].clone();
    // More than any machine has: so all of it is too little.
    restart("1Pi")?;
    let pressed = until("the stage is evicted and the node says why", || {
        let path = "jsonpath={.status.conditions[?(@.type==\"MemoryPressure\")].status}";
        let pressed = world.cluster.kubectl(&["get", "node", Mac::NODE, "-o", path])? == "True";
        let found = pod(world, &stage)?;
        let evicted = found["metadata"]["uid"] != uid || found["status"]["reason"] == "Evicted";
        Ok((pressed && evicted).then_some(()))
    });
    restart("10Mi")?;
    pressed?;
    let back = world.rest()?;
    world.answer(&address)?;
    Ok(format!(
        "evicted; whole {} after memory was there again",
        seconds(back)
    ))
}
