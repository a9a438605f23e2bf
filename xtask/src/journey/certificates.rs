//! Certificates between real pods: issued, replaced under load, and of no use to strangers.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::world::{FLASH, World, flash, seconds};
use crate::images::Name;
use crate::process;

/// The Secrets of the deployment.
const CERTIFICATE: &str = "flash-stages-tls";
const AUTHORITY: &str = "flash-stages-ca";
/// A life that a test can wait for. It is replaced after 60 s; the nodes of the test cluster show a changed Secret within 8 s, and the
/// engine looks every 5 s.
const LIFETIME: u64 = 90;
/// Replacements in which one authority gives way to another: it is announced, it signs, it is alone.
const TURNS: usize = 3;
/// What a stranger mounts.
const FOREIGN: &str = "stranger-tls";
/// Longest wait for a Secret.
const PATIENCE: Duration = Duration::from_secs(120);

/// Certificates and their authority are replaced while requests go over the stages: every request is answered, and what the pods end up
/// with was signed by an authority that did not exist when they started.
pub(super) fn replaced(world: &mut World<'_>) -> Result<String> {
    world.operators(0)?;
    let outcome = (|| {
        // A certificate of another life may be left from an earlier run.
        let delete = ["delete", "secret", CERTIFICATE, AUTHORITY, "--ignore-not-found"];
        world.cluster.kubectl(&delete)?;
        let life = LIFETIME.to_string();
        let lives = [
            "--certificate-lifetime-seconds",
            &life,
            "--listen",
            "127.0.0.1:8081",
        ];
        let operator = world.operator("operator-certificates", &lives)?;
        let outcome = under_load(world);
        operator.end(Duration::from_secs(5));
        outcome
    })();
    world.operators(2)?;
    outcome
}

fn under_load(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&flash(1))?;
    let (first, old) = (
        entry(world, CERTIFICATE, "tls.crt", "")?,
        entry(world, AUTHORITY, "ca.crt", "")?,
    );
    verify(world, &first, &old)?;
    // An authority without a date is one whose time has come.
    let annotate = ["annotate", "secret", AUTHORITY, "ds4.dev/renew-after-"];
    world.cluster.kubectl(&annotate)?;
    let pod = world.pods(Some("early"))?.remove(0);
    let ((took, recovered), report) = world.under_load(&address, 0, |world| {
        let start = Instant::now();
        let mut certificate = first.clone();
        for _ in 0..TURNS {
            certificate = entry(world, CERTIFICATE, "tls.crt", &certificate)?;
        }
        serves(world, &pod, &certificate)?;
        let took = start.elapsed();
        // Its connections are made anew, long after the first certificate has expired.
        world.cluster.kill_container(&pod)?;
        restarted(world, &pod)?;
        Ok((took, world.rest()?))
    })?;
    let (last, new) = (
        entry(world, CERTIFICATE, "tls.crt", "")?,
        entry(world, AUTHORITY, "ca.crt", &old)?,
    );
    verify(world, &last, &new)?;
    ensure!(
        verify(world, &last, &old).is_err(),
        "the old authority vouches for the new certificate"
    );
    Ok(format!(
        "{TURNS} certificates and a new authority in {}, a stage's connections made anew in {}; {}",
        seconds(took),
        seconds(recovered),
        report.summary()
    ))
}

/// Waits until a Secret's entry is there and another than `old`.
fn entry(world: &World<'_>, secret: &str, key: &str, old: &str) -> Result<String> {
    let path = format!("jsonpath={{.data.{}}}", key.replace('.', "\\."));
    let start = Instant::now();
    loop {
        let encoded = world.cluster.kubectl(&["get", "secret", secret, "-o", &path]);
        if let Ok(encoded) = encoded
            && !encoded.is_empty()
        {
            let text =
                process::output(Command::new("sh").args(["-c", &format!("echo {encoded} | base64 -d")]))?;
            if text != old {
                return Ok(text);
            }
        }
        if start.elapsed() > PATIENCE {
            bail!("Secret {secret}: no new {key} after {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// OpenSSL's opinion: who signed it, for what, and for which names.
fn verify(world: &World<'_>, certificate: &str, authority: &str) -> Result<()> {
    let folder = world.cluster.folder();
    let (leaf, root) = (folder.join("leaf.crt"), folder.join("root.crt"));
    std::fs::write(&leaf, certificate)?;
    std::fs::write(&root, authority)?;
    let name = format!("{FLASH}-early-0.{FLASH}-stages.default.svc");
    for purpose in ["sslserver", "sslclient"] {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "verify",
            "-purpose",
            purpose,
            "-verify_hostname",
            &name,
            "-CAfile",
        ]);
        process::output(openssl.arg(&root).arg(&leaf)).with_context(|| format!("as {purpose}"))?;
    }
    Ok(())
}

/// Waits until a stage shows this certificate to whoever connects.
fn serves(world: &World<'_>, pod: &str, certificate: &str) -> Result<()> {
    let ip = world
        .cluster
        .kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
    let start = Instant::now();
    loop {
        let mut client = world.cluster.inside(std::path::Path::new("openssl"))?;
        // Without a certificate of its own it is turned away, after it was shown the stage's.
        let shown = client
            .args([
                "s_client",
                "-connect",
                &format!("{ip}:7400"),
                "-alpn",
                "h2",
                "-showcerts",
            ])
            .stdin(std::process::Stdio::null())
            .output()?;
        if String::from_utf8_lossy(&shown.stdout).contains(certificate.trim()) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "pod {pod} does not show the newest certificate"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Waits until a pod's container was started again.
fn restarted(world: &World<'_>, pod: &str) -> Result<()> {
    let path = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
    let start = Instant::now();
    while world.cluster.kubectl(&["get", "pod", pod, "-o", path])? != "1 true" {
        ensure!(start.elapsed() < PATIENCE, "pod {pod} was not started again");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What a peer shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Papers {
    /// The deployment's own.
    Own,
    /// A certificate of another deployment in the same namespace, and trust in this one's authority.
    Foreign,
    /// None: it speaks in the clear.
    None,
}

impl Papers {
    const fn secret(self) -> Option<&'static str> {
        match self {
            Self::Own => Some(CERTIFICATE),
            Self::Foreign => Some(FOREIGN),
            Self::None => None,
        }
    }
}

/// One who asks a stage for KV, and what comes of it.
struct Case {
    name: &'static str,
    papers: Papers,
    stage: String,
    /// Whether rows may travel.
    travels: bool,
}

/// A pod with a foreign certificate, or none, neither receives rows from a stage nor gets its own taken.
pub(super) fn strangers(world: &mut World<'_>) -> Result<String> {
    world.settle(&flash(1))?;
    let mut other = flash(0);
    other["metadata"]["name"] = "other".into();
    other["spec"]["model"]["name"] = "other".into();
    world.apply(&other)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": FOREIGN},
        "stringData": {
            "tls.crt": entry(world, "other-stages-tls", "tls.crt", "")?,
            "tls.key": entry(world, "other-stages-tls", "tls.key", "")?,
            "ca.crt": entry(world, CERTIFICATE, "ca.crt", "")?,
        },
    });
    world.apply(&secret)?;
    let outcome = said(world);
    let delete = [
        "delete",
        "pods,ds4",
        "-l",
        "journey=strangers",
        "--grace-period=0",
        "--force",
    ];
    world.cluster.kubectl(&delete)?;
    world
        .cluster
        .kubectl(&["delete", "ds4/other", &format!("secret/{FOREIGN}")])?;
    outcome
}

fn said(world: &World<'_>) -> Result<String> {
    let real = world.pods(Some("early"))?.remove(0);
    let at = |host: &str| format!("{host}.{FLASH}-stages.default.svc:7400");
    let case = |name, papers, stage: &str, travels| Case {
        name,
        papers,
        stage: at(stage),
        travels,
    };
    let cases = [
        case("own-from-real", Papers::Own, &real, true),
        case("foreign-from-real", Papers::Foreign, &real, false),
        case("none-from-real", Papers::None, &real, false),
        case("own-from-foreign", Papers::Own, "rogue-foreign", false),
        case("own-from-none", Papers::Own, "rogue-none", false),
        // The rogue is a stage like any other: to one who asks nothing of it, it hands its rows.
        case("none-from-none", Papers::None, "rogue-none", true),
    ];
    for (name, papers) in [("rogue-foreign", Papers::Foreign), ("rogue-none", Papers::None)] {
        world.apply(&rogue(name, papers))?;
    }
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/rogue-foreign",
        "pod/rogue-none",
        "--timeout=60s",
    ];
    world.cluster.kubectl(&ready)?;
    for case in &cases {
        world.apply(&asking(case))?;
    }
    let mut refusals = BTreeMap::new();
    for case in &cases {
        let (worked, words) = ended(world, case.name)?;
        ensure!(
            worked == case.travels,
            "{}: rows travelled: {worked}, expected {}: {words}",
            case.name,
            case.travels
        );
        if !case.travels {
            refusals.insert(case.name, words.lines().last().unwrap_or_default().to_owned());
        }
    }
    let log = world.cluster.kubectl(&["logs", &real])?;
    ensure!(
        log.contains("peer refused"),
        "the stage does not tell whom it refused: {log}"
    );
    let refusals: Vec<String> = refusals
        .iter()
        .map(|(name, said)| format!("{name}: {said}"))
        .collect();
    Ok(format!(
        "own certificates: rows travel; refused: {}",
        refusals.join("; ")
    ))
}

/// A stage of the first layer behind a name of the deployment's own Service.
fn rogue(name: &str, papers: Papers) -> Value {
    let arguments = ["stage", "--layers", "0:0", "--listen", "0.0.0.0:7400"];
    let mut pod = pod(name, papers, &arguments);
    pod["metadata"]["labels"]["ds4.dev/name"] = FLASH.into();
    pod["spec"]["hostname"] = name.into();
    pod["spec"]["subdomain"] = format!("{FLASH}-stages").into();
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 7400}, "periodSeconds": 1});
    pod
}

/// An output pod that takes the rows of the first layer from a stage, or fails.
fn asking(case: &Case) -> Value {
    let prompt = "How can one model live on several machines? ".repeat(4);
    let arguments = [
        "run",
        "--layers",
        "1:output",
        "--stages",
        &case.stage,
        "--policy",
        "always",
        "--on-failure",
        "fail",
        "--handoff-timeout",
        "8s",
        "-n",
        "4",
        "--prompt",
        &prompt,
        "--json",
    ];
    pod(case.name, case.papers, &arguments)
}

fn pod(name: &str, papers: Papers, arguments: &[&str]) -> Value {
    let model = ["--model", "/models/model.gguf"];
    let tls = ["--tls-dir", "/tls"];
    let mut all: Vec<&str> = [arguments, &model].concat();
    let mut mounts = json!([{"name": "model", "mountPath": "/models"}]);
    let mut volumes = json!([{"name": "model", "emptyDir": {}}]);
    if let Some(secret) = papers.secret() {
        all.extend(tls);
        push(
            &mut mounts,
            json!({"name": "tls", "mountPath": "/tls", "readOnly": true}),
        );
        push(
            &mut volumes,
            json!({"name": "tls", "secret": {"secretName": secret}}),
        );
    }
    let synth = [
        "synth",
        "--preset",
        "micro",
        "--seed",
        "7",
        "--out",
        "/models/model.gguf",
    ];
    let container = |name: &str, arguments: &[&str], mounts: &Value| json!({"name": name, "image": Name::Engine.reference(), "imagePullPolicy": "Never", "args": arguments, "volumeMounts": mounts});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"journey": "strangers"}},
        "spec": {
            "restartPolicy": "Never", "volumes": volumes,
            "initContainers": [container("model", &synth, &mounts)],
            "containers": [container("ds4", &all, &mounts)],
        },
    })
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// Waits until a pod has ended; whether it went well, and what it said.
fn ended(world: &World<'_>, pod: &str) -> Result<(bool, String)> {
    let start = Instant::now();
    loop {
        let phase = world
            .cluster
            .kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"])?;
        if phase == "Succeeded" || phase == "Failed" {
            return Ok((phase == "Succeeded", world.cluster.kubectl(&["logs", pod])?));
        }
        ensure!(start.elapsed() < PATIENCE, "pod {pod} is {phase}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
