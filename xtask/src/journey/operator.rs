//! The operator itself: killed at every step, and held to what it is allowed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::world::{World, with_window};
use crate::demo::SYSTEM;
use crate::process::Started;

/// Steps after which the operator can be told to end; see `operator/controller/src/reconcile.rs`.
const STEPS: [&str; 8] = [
    "observed",
    "built",
    "certified",
    "surroundings",
    "sets",
    "forgotten",
    "probed",
    "status",
];

/// At every step of a reconciliation, in the middle of rollouts: its successor gets on.
pub(super) fn killed_at_every_step(world: &mut World<'_>) -> Result<String> {
    let address = world.settle(&with_window(4))?;
    world.operators(0)?;
    let outcome = at_every_step(world, &address);
    world.operators(2)?;
    outcome
}

fn at_every_step(world: &mut World<'_>, address: &str) -> Result<String> {
    let ((), report) = world.under_load(address, 0, |world| {
        for (number, step) in STEPS.iter().enumerate() {
            world.apply(&with_window(10 + i32::try_from(number)?))?;
            let victim = world.operator(
                &format!("operator-{step}"),
                &["--end-after", step, "--listen", "127.0.0.1:8081"],
            )?;
            ended(&victim).with_context(|| format!("told to end after {step}"))?;
            let successor = world.operator("operator-successor", &["--listen", "127.0.0.1:8081"])?;
            let rest = world.rest();
            successor.end(Duration::from_secs(5));
            rest.with_context(|| format!("after one that ended at {step}"))?;
        }
        Ok(())
    })?;
    Ok(format!(
        "{} steps: {}; {}",
        STEPS.len(),
        STEPS.join(", "),
        report.summary()
    ))
}

fn ended(process: &Started) -> Result<()> {
    let start = Instant::now();
    while process.is_alive() {
        if start.elapsed() > Duration::from_secs(30) {
            process.end(Duration::ZERO);
            bail!("it did not end: {}", crate::process::tail_of(&process.log));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Everything that the operator may do was done in these journeys, and nothing was refused: there is no permission too many or too few.
pub(super) fn permissions(world: &mut World<'_>) -> Result<String> {
    let user = format!("system:serviceaccount:{SYSTEM}:ds4");
    let text = std::fs::read_to_string(world.cluster.audit_log()?)?;
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &Value| event["user"]["username"] == user.as_str())
        .collect();
    let refused: BTreeSet<String> = events
        .iter()
        .filter(|event| event["responseStatus"]["code"] == 403)
        .map(|event| asked(event).join(" "))
        .collect();
    ensure!(refused.is_empty(), "refused: {refused:?}");
    let used: BTreeSet<[String; 3]> = events.iter().map(asked).collect();
    let allowed = allowed(world)?;
    let unused: Vec<String> = allowed
        .iter()
        .filter(|rule| !used.contains(*rule) && !is_exempt(rule, &used))
        .map(|rule| rule.join(" "))
        .collect();
    ensure!(unused.is_empty(), "allowed and never used: {unused:?}");
    Ok(format!(
        "{} permissions, all used; {} requests, none refused",
        allowed.len(),
        events.len()
    ))
}

/// What the API server asks for inside another request: a patch that creates needs `create`, and an owner reference that blocks
/// deletion needs the owner's finalizers.
fn is_exempt(rule: &[String; 3], used: &BTreeSet<[String; 3]>) -> bool {
    let [group, resource, verb] = rule;
    let patch = [group.clone(), resource.clone(), "patch".to_owned()];
    resource == "ds4deployments/finalizers" || (verb == "create" && used.contains(&patch))
}

fn asked(event: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reference = &event["objectRef"];
    let mut resource = text(&reference["resource"]);
    if let Some(sub) = reference["subresource"].as_str() {
        resource = format!("{resource}/{sub}");
    }
    [text(&reference["apiGroup"]), resource, text(&event["verb"])]
}

/// Group, resource and verb of every rule of the operator's two roles.
fn allowed(world: &World<'_>) -> Result<BTreeSet<[String; 3]>> {
    let cluster_role = format!("clusterrole/ds4-{SYSTEM}");
    let mut all = BTreeSet::new();
    for role in [cluster_role.as_str(), "role/ds4"] {
        let text = world
            .cluster
            .kubectl(&["get", role, "-n", SYSTEM, "-o", "json"])?;
        let role: Value = serde_json::from_str(&text)?;
        for rule in role["rules"].as_array().into_iter().flatten() {
            let list = |key: &str| -> Vec<String> {
                let values = rule[key].as_array().into_iter().flatten();
                values.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            for group in list("apiGroups") {
                for resource in list("resources") {
                    for verb in list("verbs") {
                        all.insert([group.clone(), resource.clone(), verb]);
                    }
                }
            }
        }
    }
    Ok(all)
}

/// What is asked of the API server within some time, in the form of [`asked`].
pub(super) fn asked_within(world: &World<'_>, time: Duration) -> Result<Vec<[String; 3]>> {
    let before = std::fs::read_to_string(world.cluster.audit_log()?)?.len();
    std::thread::sleep(time);
    let text = std::fs::read_to_string(world.cluster.audit_log()?)?;
    let events = text[before..]
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events.map(|event| asked(&event)).collect())
}

/// At rest the operator renews its Lease and keeps its watches open, and asks for nothing else.
pub(super) fn quiet(world: &mut World<'_>) -> Result<String> {
    const WINDOW: Duration = Duration::from_secs(30);
    world.settle(&with_window(4))?;
    std::thread::sleep(Duration::from_secs(5));
    let (mut leases, mut loud) = (0, Vec::new());
    for asked in asked_within(world, WINDOW)? {
        match asked {
            [_, resource, _] if resource == "leases" => leases += 1,
            [_, _, verb] if verb == "watch" => {}
            other => loud.push(other.join(" ")),
        }
    }
    ensure!(loud.is_empty(), "at rest it asked for {loud:?}");
    Ok(format!(
        "in {} s: {leases} requests for the Lease, no other",
        WINDOW.as_secs()
    ))
}
