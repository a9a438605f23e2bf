//! Two hundred deployments at once, and what they cost the operator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::operator::asked;
use super::world::{World, flash};
use crate::process::{self, Started};
use crate::progress::step;
use crate::repository;

const COUNT: usize = 200;
/// How long they are watched at rest.
const WINDOW: Duration = Duration::from_secs(30);
/// Where they live.
const NAMESPACE: &str = "many";
/// Where the measured operator serves its metrics.
const LISTEN: &str = "127.0.0.1:8081";
/// Clock ticks per second of `/proc/PID/stat`: fixed by Linux for programs.
const TICKS: f64 = 100.0;

/// No node takes their pods: what is measured is the operator, not the engine. It is built as it is released.
pub(super) fn two_hundred(world: &mut World<'_>) -> Result<String> {
    let program = released()?;
    world.operators(0)?;
    let outcome = measured(world, &program);
    let delete = [
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--wait=false",
    ];
    world.cluster.kubectl(&delete)?;
    world.operators(2)?;
    outcome
}

fn released() -> Result<PathBuf> {
    let log = repository::cache().join("cluster/operator-build.log");
    step("building the operator with optimisation", || {
        process::logged(
            Command::new(env!("CARGO"))
                .args(["build", "--release", "--bin", "ds4-operator"])
                .current_dir(repository::root()),
            &log,
        )
    })?;
    Ok(repository::target().join("release/ds4-operator"))
}

fn measured(world: &World<'_>, program: &Path) -> Result<String> {
    world.cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let file = world.cluster.folder().join("many.json");
    std::fs::write(&file, manifests().to_string())?;
    world
        .cluster
        .kubectl(&["apply", "-n", NAMESPACE, "-f", &file.display().to_string()])?;
    let start = Instant::now();
    let first = world.operator_of(program, "operator-many", &["--listen", LISTEN])?;
    let outcome = seen(world, &first).and_then(|()| percentile(&metrics(world)?));
    first.end(Duration::from_secs(5));
    let (creating, took) = (outcome?, start.elapsed());
    // A successor looks at all of them anew, and finds nothing to write.
    let second = world.operator_of(program, "operator-many-again", &["--listen", LISTEN])?;
    let outcome = at_rest(world, &second);
    second.end(Duration::from_secs(5));
    Ok(format!(
        "{COUNT} known after {:.0} s; creating them: {creating}; a successor: {}",
        took.as_secs_f64(),
        outcome?
    ))
}

fn manifests() -> Value {
    let items: Vec<Value> = (0..COUNT)
        .map(|number| {
            let mut manifest = flash(1);
            manifest["metadata"] = json!({"name": format!("flash-{number}")});
            for stage in [0, 1] {
                manifest["spec"]["pipeline"]["stages"][stage]["podTemplate"] =
                    json!({"spec": {"nodeSelector": {"disk": "none-such"}}});
            }
            manifest
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Waits until every deployment has a status that tells of its pods.
fn seen(world: &World<'_>, operator: &Started) -> Result<()> {
    let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Degraded\")].reason}";
    let start = Instant::now();
    loop {
        operator.check()?;
        let said = world
            .cluster
            .kubectl(&["get", "ds4", "-n", NAMESPACE, "-o", path])?;
        let known = said
            .split_whitespace()
            .filter(|reason| *reason == "Unschedulable")
            .count();
        if known == COUNT {
            return Ok(());
        }
        ensure!(
            start.elapsed() < Duration::from_secs(300),
            "{known} of {COUNT} have been looked at"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn at_rest(world: &World<'_>, operator: &Started) -> Result<String> {
    std::thread::sleep(Duration::from_secs(10));
    let (cpu, log) = (
        cpu_seconds(operator)?,
        std::fs::read_to_string(world.cluster.audit_log()?)?.len(),
    );
    std::thread::sleep(WINDOW);
    let share = (cpu_seconds(operator)? - cpu) / WINDOW.as_secs_f64() * 100.0;
    let text = std::fs::read_to_string(world.cluster.audit_log()?)?;
    let loud: Vec<String> = text[log..]
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|event| asked(&event).join(" "))
        .filter(|asked| !asked.ends_with(" watch"))
        .collect();
    // The scheduler looks at pods without a node again and again; the few status changes that follow are its own.
    ensure!(
        loud.len() < COUNT,
        "at rest it asked {} times: {:?}",
        loud.len(),
        &loud[..10.min(loud.len())]
    );
    let metrics = metrics(world)?;
    Ok(format!(
        "at rest {share:.1} % of a core, {:.0} MB ({:.0} MB of them the program's file), {} requests in {} s; reconciliations: {}",
        megabytes(operator, "VmRSS:")?,
        megabytes(operator, "RssFile:")?,
        loud.len(),
        WINDOW.as_secs(),
        percentile(&metrics)?
    ))
}

fn metrics(world: &World<'_>) -> Result<String> {
    let mut curl: Command = world.cluster.inside(std::path::Path::new("curl"))?;
    process::output(curl.args(["-sS", &format!("http://{LISTEN}/metrics")]))
}

/// The smallest bucket that holds 99 of 100 reconciliations.
fn percentile(metrics: &str) -> Result<String> {
    let count = |line: &str| line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
    let find = |name: &str| {
        metrics
            .lines()
            .find(|line| line.starts_with(name))
            .and_then(count)
    };
    let all = find("ds4_operator_reconcile_seconds_count").context("the count")?;
    let bucket = metrics
        .lines()
        .filter(|line| line.starts_with("ds4_operator_reconcile_seconds_bucket"))
        .find(|line| count(line).is_some_and(|within| within >= all * 0.99))
        .context("a bucket")?;
    let bound = bucket.split('"').nth(1).context("a bound")?;
    Ok(format!("{all}, 99 of 100 within {bound} s"))
}

fn cpu_seconds(operator: &Started) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", operator.pid))?;
    let rest = text.rsplit_once(") ").context("the process's statistics")?.1;
    // Fields 14 and 15 of proc(5); the first of the rest is field 3.
    let ticks = rest
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS)
}

/// Megabytes of memory that a line of `/proc/PID/status` tells.
fn megabytes(operator: &Started, field: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", operator.pid))?;
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .context("memory")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn the_percentile_is_read_from_the_buckets() {
        let bucket = |bound: &str, count: u32| {
            format!("ds4_operator_reconcile_seconds_bucket{{le=\"{bound}\"}} {count}\n")
        };
        let text = bucket("0.1", 98)
            + &bucket("0.2", 99)
            + &bucket("+Inf", 100)
            + "ds4_operator_reconcile_seconds_count 100\n";
        assert_eq!(
            percentile(&text).ok().as_deref(),
            Some("100, 99 of 100 within 0.2 s")
        );
    }
}
