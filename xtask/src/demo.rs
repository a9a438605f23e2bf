//! `cargo xtask demo`: the main job on this machine, shown.

use std::time::Duration;

use anyhow::Result;

use crate::ask::{ask, print};
use crate::cluster::{self, Cluster, Provider};
use crate::images::{self, Name};
use crate::progress::{Probe, step, wait};
use crate::repository;
use crate::trace::{self, Trace};

/// Namespace of the chart.
pub const SYSTEM: &str = "ds4-system";
/// Nodes of a demo's cluster: one for every pod of the quickstart.
pub const NODES: usize = 3;
/// How long pods may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A fresh cluster with the project's images on every node.
///
/// # Errors
/// When one cannot be built or brought up.
pub fn cluster(name: &str, provider: Option<Provider>) -> Result<Cluster> {
    let provider = cluster::choose(provider)?;
    eprintln!("provider: {provider} (a real Kubernetes of {NODES} nodes on this machine)");
    images::build(&Name::OURS)?;
    if let Some(old) = Cluster::find(name)? {
        old.down()?;
    }
    let cluster = Cluster::up(name, provider, NODES)?;
    cluster.load(&Name::OURS)?;
    Ok(cluster)
}

/// Installs the collector and the operator's chart.
///
/// # Errors
/// When one does not start.
pub fn install(cluster: &Cluster) -> Result<()> {
    step("the collector", || {
        cluster.kubectl(&["apply", "-f", "tests/cluster/manifests/collector.yaml"])?;
        let rollout = [
            "rollout",
            "status",
            "deployment/otel-collector",
            "--namespace=observability",
            "--timeout=120s",
        ];
        cluster.kubectl(&rollout).map(drop)
    })?;
    let mut arguments = vec![
        "install",
        "ds4",
        "charts/ds4",
        "--namespace",
        SYSTEM,
        "--create-namespace",
    ];
    arguments.extend(["--wait", "--timeout", "120s"]);
    let (operator, engine) = (
        image_values("image", Name::Operator),
        image_values("engine.image", Name::Engine),
    );
    for value in operator.iter().chain(&engine) {
        arguments.extend(["--set", value]);
    }
    step("helm install charts/ds4", || cluster.helm(&arguments).map(drop))
}

/// Chart values that name an image which lies on every node.
fn image_values(key: &str, name: Name) -> [String; 3] {
    let (repository, tag) = name
        .reference()
        .split_once(':')
        .unwrap_or((name.reference(), "latest"));
    [
        format!("{key}.repository={repository}"),
        format!("{key}.tag={tag}"),
        format!("{key}.pullPolicy=Never"),
    ]
}

/// Applies the quickstart with traces on, and waits until it is ready; returns an address of this machine behind
/// which its Service is.
///
/// # Errors
/// When it does not become ready.
pub fn quickstart(cluster: &mut Cluster) -> Result<String> {
    let manifest = std::fs::read_to_string(repository::root().join("examples/quickstart.yaml"))?;
    let traced = "spec:\n  observability: {otlpEndpoint: \"http://otel-collector.observability:4317\"}\n";
    let file = cluster.folder().join("quickstart.yaml");
    std::fs::write(&file, manifest.replacen("spec:\n", traced, 1))?;
    step("kubectl apply -f examples/quickstart.yaml", || {
        cluster
            .kubectl(&["apply", "-f", &file.display().to_string()])
            .map(drop)
    })?;
    wait("the pipeline is ready", PATIENCE, || {
        let path = "jsonpath={.status.conditions[?(@.type==\"PipelineReady\")].status} {.status.conditions[?(@.type==\"PipelineReady\")].message}";
        let said = cluster.kubectl(&["get", "ds4", "quickstart", "-o", path])?;
        Ok(if said.starts_with("True") {
            Probe::Ready(())
        } else {
            Probe::Waiting(said.trim_start_matches("False ").trim().to_owned())
        })
    })?;
    Ok(format!(
        "http://{}",
        cluster.forward("default", "quickstart", 8000)?
    ))
}

/// Waits until the collector has a whole trace of a handoff: its root and every stage.
///
/// # Errors
/// When it does not come.
pub fn whole_trace(cluster: &Cluster, stages: usize) -> Result<Trace> {
    wait(
        "the trace is in the collector's file",
        Duration::from_secs(60),
        || {
            let read = [
                "exec",
                "deployment/otel-collector",
                "--namespace=observability",
                "--",
                "/usr/bin/cat",
            ];
            let text = cluster.kubectl(&[&read[..], &["/traces/traces.jsonl"]].concat())?;
            trace::whole(&text, stages)
        },
    )
}

/// The whole demo.
///
/// # Errors
/// When a step fails; the cluster is taken down all the same unless `keep`.
pub fn run(provider: Option<Provider>, keep: bool) -> Result<()> {
    let outcome = cluster("demo", provider).and_then(|mut cluster| show(&mut cluster));
    let Some(cluster) = Cluster::find("demo")? else {
        return outcome;
    };
    if keep {
        eprintln!("the cluster stays until: cargo xtask cluster down");
        eprintln!("look around with:        cargo xtask cluster kubectl get ds4");
        return outcome;
    }
    let ended = cluster.down();
    outcome.and(ended)
}

fn show(cluster: &mut Cluster) -> Result<()> {
    install(cluster)?;
    let address = quickstart(cluster)?;
    print(&format!("\n{}", cluster.kubectl(&["get", "ds4"])?))?;
    print(&cluster.kubectl(&["get", "pods", "-o", "wide"])?)?;
    ask("quickstart", &address)?;
    let trace = whole_trace(cluster, 2)?;
    print(&format!(
        "\ntrace over {}:\n{}",
        trace.sources().join(", "),
        trace.waterfall()
    ))
}
