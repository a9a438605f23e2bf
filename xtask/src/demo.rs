//! `cargo xtask demo`: the main job on this machine, shown.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::{self, Cluster};
use crate::process;
use crate::progress::{Probe, step, wait};
use crate::trace::{self, Trace};
use crate::{images, repository};

/// Namespace of the chart.
pub const SYSTEM: &str = "ds4-system";

/// Installs the collector and the operator's chart.
///
/// # Errors
/// When one does not start.
pub fn install(cluster: &Cluster) -> Result<()> {
    let manifest = std::fs::read_to_string(repository::root().join("tests/cluster/collector.yaml"))?;
    cluster.apply(&manifest.replace("TRACES", &cluster.traces()?.display().to_string()))?;
    let chart = repository::root().join("charts/ds4").display().to_string();
    let (repository_of, tag) = ("localhost", "dev");
    let mut arguments: Vec<String> = [
        "install",
        "ds4",
        &chart,
        "-n",
        SYSTEM,
        "--create-namespace",
        "--wait",
        "--timeout",
        "120s",
    ]
    .map(String::from)
    .into();
    for (value, name) in [("image", "ds4-operator"), ("engine.image", "ds4")] {
        for setting in [
            format!("{value}.repository={repository_of}/{name}"),
            format!("{value}.tag={tag}"),
            format!("{value}.pullPolicy=Never"),
        ] {
            arguments.extend(["--set".into(), setting]);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    step("helm install charts/ds4", || cluster.helm(&arguments).map(|_| ()))
}

/// Applies the quickstart with traces on, and waits until it answers; returns its address.
///
/// # Errors
/// When it does not become ready.
pub fn quickstart(cluster: &Cluster) -> Result<String> {
    let manifest = std::fs::read_to_string(repository::root().join("examples/quickstart.yaml"))?;
    let traced = "spec:\n  observability: {otlpEndpoint: \"http://collector.observability:4317\"}\n";
    step("kubectl apply -f examples/quickstart.yaml", || {
        cluster.apply(&manifest.replacen("spec:\n", traced, 1))
    })?;
    wait("waiting for the pipeline", Duration::from_secs(180), || {
        let path = "jsonpath={.status.conditions[?(@.type==\"PipelineReady\")].status} {.status.conditions[?(@.type==\"PipelineReady\")].message}";
        let said = cluster.kubectl(&["get", "ds4", "quickstart", "-o", path])?;
        Ok(said
            .strip_prefix("True")
            .map_or_else(|| Probe::Waiting(said.clone()), |_| Probe::Ready(())))
    })?;
    let address = cluster.kubectl(&[
        "get",
        "service",
        "quickstart",
        "-o",
        "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
    ])?;
    Ok(format!("http://{address}"))
}

/// Waits until the collector has a whole trace of a handoff: its root and both stages.
///
/// # Errors
/// When it does not come.
pub fn whole_trace(cluster: &Cluster, stages: usize) -> Result<Trace> {
    let file = cluster.traces()?.join("traces.jsonl");
    wait("waiting for the trace", Duration::from_secs(60), || {
        let Some(trace) = trace::newest(&file)? else {
            return Ok(Probe::Waiting("no trace yet".into()));
        };
        let (found, roots) = (trace.named("ds4.stage").count(), trace.roots().count());
        if found == stages && roots == 1 {
            return Ok(Probe::Ready(trace));
        }
        Ok(Probe::Waiting(format!(
            "{found} of {stages} stages, {roots} roots"
        )))
    })
}

/// The whole demo.
///
/// # Errors
/// When a step fails; the cluster is ended all the same unless `keep`.
pub fn run(keep: bool) -> Result<()> {
    cluster::possible()?;
    eprintln!("provider: namespaces (a real three-node Kubernetes on this machine)");
    let outcome = cluster::up().and_then(|cluster| show(&cluster));
    if keep {
        eprintln!(
            "the cluster stays: cargo xtask cluster status; cargo xtask cluster kubectl get ds4; cargo xtask cluster down"
        );
    } else {
        step("ending the cluster", cluster::down)?;
    }
    outcome
}

fn show(cluster: &Cluster) -> Result<()> {
    install(cluster)?;
    let address = quickstart(cluster)?;
    println!("\n{}", cluster.kubectl(&["get", "ds4"])?);
    println!("{}", cluster.kubectl(&["get", "pods", "-o", "wide"])?);
    println!("POST {address}/v1/chat/completions");
    print_answer(&ask(cluster.command("curl"), &address, "quickstart")?)?;
    let trace = whole_trace(cluster, 2)?;
    println!(
        "\ntrace over {}:\n{}",
        trace.sources().join(", "),
        trace.waterfall()
    );
    Ok(())
}

/// Asks a question long enough to go over the stages; returns headers and stream.
///
/// # Errors
/// When the server does not answer.
pub fn ask(mut curl: Command, address: &str, model: &str) -> Result<String> {
    let question =
        "How can the layers of one model live on several machines while only one of them answers? ".repeat(3);
    let request = json!({
        "model": model, "stream": true, "max_tokens": 24, "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    });
    curl.args([
        "-sS",
        "-N",
        "-i",
        "--max-time",
        "60",
        "-H",
        "content-type: application/json",
        "-d",
        &request.to_string(),
    ]);
    process::output(curl.arg(format!("{address}/v1/chat/completions")))
}

/// The decision header and the streamed text.
///
/// # Errors
/// When the answer is not what the API promises.
pub fn print_answer(said: &str) -> Result<()> {
    let header = said
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("x-ds4-disaggregation:"));
    println!("{}", header.context("the answer has no decision header")?.trim());
    let parts = said
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]");
    let mut text = String::new();
    for part in parts {
        let value: serde_json::Value = serde_json::from_str(part).context("a part of the stream")?;
        text.push_str(
            value["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default(),
        );
    }
    println!("answer (noise: the model is random): {text:?}");
    Ok(())
}

/// Builds the project's images without a cluster.
///
/// # Errors
/// When one cannot be built.
pub fn images() -> Result<()> {
    for archive in images::build(&images::Name::ALL)? {
        println!("{}", archive.display());
    }
    Ok(())
}
