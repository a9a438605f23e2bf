//! Two hundred deployments at once, and what they cost the operator.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::operator::asked_within;
use super::world::{World, flash};
use crate::process::{self, Started};
use crate::{released, tools};

const COUNT: usize = 200;
/// How long they are watched at rest.
const WINDOW: Duration = Duration::from_secs(30);
/// Quiet for so long, it is at rest.
const SETTLED: Duration = Duration::from_secs(10);
/// Longest wait for that; then it is measured as it is.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the measured operator serves its metrics.
const LISTEN: &str = "127.0.0.1:8081";
/// Clock ticks per second of `/proc/PID/stat`: fixed by Linux for programs.
const TICKS: f64 = 100.0;

/// Starts a process of that name.
type Start<'a> = Box<dyn Fn(&str) -> Result<Started> + 'a>;

/// An operator that is measured.
struct Contender<'a> {
    name: &'static str,
    /// Where its deployments live.
    namespace: &'static str,
    /// The histogram of its reconciliations.
    metric: &'static str,
    start: Start<'a>,
}

/// No node takes their pods: what is measured is the operator, not the engine. It is built as it is released, and measured beside one of the
/// usual make.
pub(super) fn two_hundred(world: &mut World<'_>) -> Result<String> {
    let program = released::program("ds4-operator", &["--bin", "ds4-operator"], "ds4-operator")?;
    let peer = tools::PEER.build()?.join("peer");
    world.operators(0)?;
    let outcome = side_by_side(world, &program, &peer);
    for namespace in ["many", "many-peer"] {
        let delete = [
            "delete",
            "namespace",
            namespace,
            "--ignore-not-found",
            "--wait=false",
        ];
        world.cluster.kubectl(&delete)?;
    }
    world.operators(2)?;
    outcome
}

fn side_by_side(world: &World<'_>, program: &Path, peer: &Path) -> Result<String> {
    let ours = Contender {
        name: "operator-many",
        namespace: "many",
        metric: "ds4_operator_reconcile_seconds",
        start: Box::new(|name| world.operator_of(program, name, &["--listen", LISTEN])),
    };
    let ours = measured(world, &ours)?;
    world.peers_account()?;
    let usual = Contender {
        name: "peer-many",
        namespace: "many-peer",
        metric: "controller_runtime_reconcile_time_seconds",
        start: Box::new(|name| world.peer(peer, name, &["--namespace", "many-peer", "--listen", LISTEN])),
    };
    let usual = measured(world, &usual)?;
    Ok(format!(
        "{ours}; one of controller-runtime with as many objects: {usual}"
    ))
}

fn measured(world: &World<'_>, contender: &Contender<'_>) -> Result<String> {
    let Contender { name, namespace, .. } = *contender;
    world.cluster.kubectl(&["create", "namespace", namespace])?;
    let file = world.cluster.folder().join("many.json");
    std::fs::write(&file, manifests().to_string())?;
    world
        .cluster
        .kubectl(&["apply", "-n", namespace, "-f", &file.display().to_string()])?;
    let start = Instant::now();
    let first = (contender.start)(name)?;
    let outcome =
        seen(world, namespace, &first).and_then(|()| percentile(&metrics(world)?, contender.metric));
    first.end(Duration::from_secs(5));
    let (creating, took) = (outcome?, start.elapsed());
    // A successor looks at all of them anew, and finds nothing to write.
    let second = (contender.start)(&format!("{name}-again"))?;
    let outcome = at_rest(world, contender, &second);
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
fn seen(world: &World<'_>, namespace: &str, operator: &Started) -> Result<()> {
    let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Degraded\")].reason}";
    let start = Instant::now();
    loop {
        operator.check()?;
        let said = world
            .cluster
            .kubectl(&["get", "ds4", "-n", namespace, "-o", path])?;
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

/// What was asked of the API server meanwhile, watches aside.
fn loud_within(world: &World<'_>, time: Duration) -> Result<Vec<String>> {
    let asked = asked_within(world, time)?.into_iter();
    let loud = asked.filter(|[_, _, verb]| verb != "watch");
    Ok(loud.map(|asked| asked.join(" ")).collect())
}

/// Waits until an operator has looked at every deployment, and until what that and the scheduler's last words led to is done.
fn settle(world: &World<'_>, contender: &Contender<'_>) -> Result<()> {
    let start = Instant::now();
    let all = |metrics: &str| reconciled(metrics, contender.metric).is_some_and(|seen| seen >= COUNT as f64);
    // It does not listen from its first moment on.
    while !metrics(world).is_ok_and(|text| all(&text)) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_secs(1));
    }
    while loud_within(world, SETTLED)?.len() > COUNT / 20 && start.elapsed() < PATIENCE {}
    Ok(())
}

fn at_rest(world: &World<'_>, contender: &Contender<'_>, operator: &Started) -> Result<String> {
    settle(world, contender)?;
    let cpu = cpu_seconds(operator)?;
    let loud = loud_within(world, WINDOW)?;
    let share = (cpu_seconds(operator)? - cpu) / WINDOW.as_secs_f64() * 100.0;
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
        percentile(&metrics, contender.metric)?
    ))
}

fn metrics(world: &World<'_>) -> Result<String> {
    let mut curl: Command = world.cluster.inside(std::path::Path::new("curl"))?;
    process::output(curl.args(["-sS", &format!("http://{LISTEN}/metrics")]))
}

/// The number at the end of a line of metrics.
fn count(line: &str) -> Option<f64> {
    line.rsplit(' ').next().and_then(|text| text.parse().ok())
}

/// How many reconciliations a histogram has seen.
fn reconciled(metrics: &str, histogram: &str) -> Option<f64> {
    let name = format!("{histogram}_count");
    metrics
        .lines()
        .find(|line| line.starts_with(&name))
        .and_then(count)
}

/// The smallest bucket that holds 99 of 100 reconciliations.
fn percentile(metrics: &str, histogram: &str) -> Result<String> {
    let all = reconciled(metrics, histogram).context("the count")?;
    let bucket = metrics
        .lines()
        .filter(|line| line.starts_with(&format!("{histogram}_bucket")))
        .find(|line| count(line).is_some_and(|within| within >= all * 0.99))
        .context("a bucket")?;
    let bound = bucket
        .split("le=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let bound = bound.context("a bound")?;
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
            percentile(&text, "ds4_operator_reconcile_seconds")
                .ok()
                .as_deref(),
            Some("100, 99 of 100 within 0.2 s")
        );
    }
}
