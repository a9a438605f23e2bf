//! Keys and policies. (The cluster's network plugin does not enforce policies: the object is what is checked.)

use anyhow::{Result, ensure};

use super::world::{FLASH, World, flash};

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
