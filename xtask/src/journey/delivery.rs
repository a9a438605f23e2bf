//! Models that come from elsewhere.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, beside, seconds};
use crate::process::{self, Started};
use crate::repository;

/// Where the control plane's network is seen from pods, and a port that nobody else has there.
const SERVER: (&str, &str) = ("10.200.0.1", "8099");
/// The file's name.
const FILE: &str = "flash.gguf";
/// A folder of every node: the nodes' file systems are this machine's, so each gets one of its own there.
const CACHE: &str = "/tmp/ds4-journey-cache";

/// Two stages on one node share what is fetched, each takes its own layers, and a new revision fetches nothing anew.
pub(super) fn fetched_once(world: &mut World<'_>) -> Result<String> {
    world.clear()?;
    let folder = world.cluster.folder().join("models");
    let (model, log) = (folder.join(FILE), folder.join("asked"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let synth = repository::target().join("debug/ds4");
    // Large tensors, so that what every stage reads, the header and each tensor's start, is a small part of the file.
    let of = [
        "synth",
        "--preset",
        "tiny",
        "--seed",
        "7",
        "--set",
        "n_expert=64",
        "--out",
    ];
    process::output(Command::new(synth).args(of).arg(&model))?;
    let whole = std::fs::metadata(&model)?.len();
    let script = repository::root().join("tests/cluster/model_server.py");
    let mut python = world.cluster.inside(Path::new("python3"))?;
    python
        .arg(script)
        .arg(&model)
        .arg(&log)
        .args([SERVER.0, SERVER.1]);
    let server = Started::spawn("model-server", &mut python, &world.cluster.folder().join("logs"))?;
    let outcome = taken(world, &log, whole);
    server.end(Duration::from_secs(2));
    world.remove()?;
    outcome
}

fn taken(world: &mut World<'_>, log: &Path, whole: u64) -> Result<String> {
    for node in 1..=crate::demo::NODES {
        world.cluster.on_node(
            node,
            &[
                "sh",
                "-c",
                &format!(
                    "umount {CACHE} 2>/dev/null; mkdir -p {CACHE} && mount -t tmpfs -o size=256m none {CACHE} && chown 65532 {CACHE}"
                ),
            ],
        )?;
    }
    // The stage has a node of its own: it needs only its layers. The output pod then needs the rest, and what is there is not asked for.
    let apart = manifest("node2", "node1");
    let address = world.settle(&apart)?;
    let early = bytes(log, "10.244.2.")?;
    let output = bytes(log, "10.244.1.")?;
    ensure!(
        early < whole / 3,
        "a stage of one layer in seven fetched {early} of {whole} bytes"
    );
    ensure!(
        output >= whole && output < whole + whole / 4,
        "the output pod fetched {output} of {whole} bytes"
    );
    let shown = world.get()?["status"]["stages"].clone();
    let shown = shown[0]["loadedBytes"].as_i64();
    ensure!(
        shown.is_some_and(|shown| shown > 0),
        "the status shows {shown:?} bytes of the stage"
    );
    // The stage moves to the output pod's node, where everything is already; nothing comes over the network, and the old one serves on.
    let (took, report) = world.under_load(&address, 0, |world| {
        world.apply(&manifest("node1", "node1"))?;
        world.rest()
    })?;
    let again = bytes(log, "10.244.1.")? - output;
    ensure!(
        again < whole / 50,
        "{again} bytes were fetched for the second time"
    );
    Ok(format!(
        "of {whole} bytes a stage fetched {early}, the output pod {output}; beside it on one node {again}, ready after {}; {}",
        seconds(took),
        report.summary()
    ))
}

fn manifest(early: &str, output: &str) -> Value {
    let mut manifest = beside(1);
    manifest["metadata"]["name"] = FLASH.into();
    manifest["spec"]["model"]["source"] =
        json!({"http": {"url": format!("http://{}:{}/{FILE}", SERVER.0, SERVER.1)}});
    manifest["spec"]["model"]["cache"] = json!({"hostPath": CACHE});
    for (stage, node) in [(0, early), (1, output)] {
        manifest["spec"]["pipeline"]["stages"][stage]["podTemplate"] =
            json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}});
    }
    manifest
}

/// What pods with such addresses were sent.
fn bytes(log: &Path, network: &str) -> Result<u64> {
    let text = std::fs::read_to_string(log).context("the server's log: nothing was asked for")?;
    let sent = text.lines().filter(|line| line.starts_with(network));
    sent.map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?))
        .sum()
}
