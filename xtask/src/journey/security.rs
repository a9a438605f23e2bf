//! Certificates, keys and policies. (The cluster's network plugin does not enforce policies: the object is what is checked.)

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::world::{FLASH, World, flash};
use crate::process;

/// A life that a test can wait for; replaced after two thirds of it.
const LIFETIME: &str = "30";

/// An authority and a certificate that it signed; the certificate is replaced in time, the authority stays.
pub(super) fn issued(world: &mut World<'_>) -> Result<String> {
    let mut manifest = flash(0);
    manifest["spec"]["security"]["mtls"]["mode"] = "Managed".into();
    world.operators(0)?;
    let outcome = (|| {
        // A certificate of another life may be left from an earlier run.
        let secrets = ["flash-tls", "flash-ca"];
        let delete = ["delete", "secret", secrets[0], secrets[1], "--ignore-not-found"];
        world.cluster.kubectl(&delete)?;
        world.apply(&manifest)?;
        let lives = [
            "--certificate-lifetime-seconds",
            LIFETIME,
            "--listen",
            "127.0.0.1:8081",
        ];
        let operator = world.operator("operator-certificates", &lives)?;
        let outcome = replaced(world);
        operator.end(Duration::from_secs(5));
        outcome
    })();
    world.operators(2)?;
    outcome
}

fn replaced(world: &World<'_>) -> Result<String> {
    let (first, authority) = (
        entry(world, "flash-tls", "tls.crt", "")?,
        entry(world, "flash-ca", "ca.crt", "")?,
    );
    verify(world, &first, &authority)?;
    let start = Instant::now();
    let second = entry(world, "flash-tls", "tls.crt", &first)?;
    let took = start.elapsed();
    verify(world, &second, &authority)?;
    ensure!(
        entry(world, "flash-ca", "ca.crt", "")? == authority,
        "the authority was replaced with the certificate"
    );
    Ok(format!(
        "signed by its authority, for both directions; replaced {:.1} s later, of a life of {LIFETIME} s",
        took.as_secs_f64()
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
        if start.elapsed() > Duration::from_secs(60) {
            bail!("Secret {secret}: no new {key} after 60 s");
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
        process::output(
            Command::new("openssl")
                .args([
                    "verify",
                    "-purpose",
                    purpose,
                    "-verify_hostname",
                    &name,
                    "-CAfile",
                ])
                .arg(&root)
                .arg(&leaf),
        )
        .with_context(|| format!("as {purpose}"))?;
    }
    Ok(())
}

/// The policy admits the deployment's own pods to the stages' port, and goes when it is not wanted any more.
pub(super) fn policy_withdrawn(world: &mut World<'_>) -> Result<String> {
    world.settle(&flash(1))?;
    let path = "jsonpath={.spec.ingress[0].from[0].podSelector.matchLabels.ds4\\.dev/name} {.spec.ingress[0].ports[0].port}";
    let rule = world
        .cluster
        .kubectl(&["get", "networkpolicy", FLASH, "-o", path])?;
    ensure!(rule == format!("{FLASH} 7400"), "the policy's first rule: {rule}");
    let mut open = flash(1);
    open["spec"]["security"]["networkPolicy"] = false.into();
    world.settle(&open)?;
    let left = world.cluster.kubectl(&["get", "networkpolicy", "-o", "name"])?;
    ensure!(!left.contains(FLASH), "left: {left}");
    Ok("stages' port for the deployment's own pods only; gone with networkPolicy: false".to_owned())
}

/// Who has no key is refused; the key itself shows nowhere.
pub(super) fn keys(world: &mut World<'_>) -> Result<String> {
    const KEY: &str = "sk-of-a-journey";
    let kubectl = |world: &World<'_>, arguments: &[&str]| world.cluster.kubectl(arguments);
    kubectl(world, &["delete", "secret", "flash-keys", "--ignore-not-found"])?;
    let literal = format!("--from-literal=list={KEY}");
    kubectl(world, &["create", "secret", "generic", "flash-keys", &literal])?;
    let mut manifest = flash(1);
    manifest["spec"]["server"]["apiKeysSecretRef"] = serde_json::json!({"name": "flash-keys", "key": "list"});
    let address = world.settle(&manifest)?;
    let (refused, admitted) = (models(&address, "sk-another")?, models(&address, KEY)?);
    ensure!(
        (refused, admitted) == (401, 200),
        "without the key {refused}, with it {admitted}"
    );
    for kind in ["ds4", "events", "statefulsets", "pods"] {
        let said = kubectl(world, &["get", kind, "-o", "yaml"])?;
        ensure!(!said.contains(KEY), "{kind} show the key");
    }
    let logs = kubectl(world, &["logs", "-l", "ds4.dev/name=flash", "--tail=-1"])?;
    ensure!(!logs.contains(KEY), "the pods' logs show the key");
    kubectl(world, &["delete", "secret", "flash-keys"])?;
    Ok("401 without a key, 200 with it; it is in no status, event, object or log".to_owned())
}

/// The status of a question about models.
fn models(address: &str, key: &str) -> Result<u16> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let answer = ureq::Agent::from(config)
        .get(format!("{address}/v1/models"))
        .header("authorization", format!("Bearer {key}"))
        .call()?;
    Ok(answer.status().as_u16())
}
