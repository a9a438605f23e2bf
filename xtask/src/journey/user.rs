//! What a user does with a cluster, from installing to leaving.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::demo::{NODES, SYSTEM, quickstart, whole_trace};
use crate::process;
use crate::progress::{Probe, step, wait};
use crate::python;
use crate::repository;

/// From the installed chart to an answered and traced question.
pub(super) fn arrive(cluster: &mut Cluster) -> Result<()> {
    step("helm lint", || {
        cluster.helm(&["lint", "charts/ds4", "--strict"]).map(drop)
    })?;
    step("invalid examples are refused by the API server", || {
        invalid(cluster)
    })?;
    let address = quickstart(cluster)?;
    step("kubectl get ds4 shows what people look for", || columns(cluster))?;
    step("the three pods are on three nodes", || spread(cluster))?;
    step("the OpenAI client completes a whole and a streamed chat", || {
        openai(&address)
    })?;
    let trace = whole_trace(cluster, 2)?;
    step(
        "one connected trace over three pods, with the handoff's bytes, rows and duration",
        || connected(&trace),
    )?;
    step("helm test", || {
        cluster
            .helm(&["test", "ds4", "-n", SYSTEM, "--timeout", "120s"])
            .map(|_| ())
    })?;
    step("deleting the deployment leaves nothing behind", || {
        delete(cluster)
    })
}

/// From a serving deployment to a cluster without a trace of the project.
pub(super) fn leave(cluster: &mut Cluster) -> Result<()> {
    quickstart(cluster)?;
    step("helm uninstall leaves users' resources and says so", || {
        uninstall(cluster)
    })?;
    step(
        "deleting it without the operator leaves nothing behind either",
        || delete(cluster),
    )
}

fn invalid(cluster: &Cluster) -> Result<()> {
    let folder = repository::root().join("examples/invalid");
    let fields = [
        ("gap", "spec.pipeline"),
        ("overlap", "spec.pipeline"),
        ("no-output", "spec.pipeline"),
        ("two-sources", "spec.model.source"),
        ("reversed", "spec.pipeline.stages[0].layers"),
        ("long-name", "metadata.name"),
        ("never-replaced", "spec.rollout"),
        ("no-issuer", "spec.security.mtls"),
        ("two-image-versions", "spec.image"),
        ("two-caches", "spec.model.cache"),
        ("claim-without-size", "spec.model.cache"),
        ("no-start", "spec.pipeline"),
        ("backoff-shrinks", "spec.failurePolicy.backoff"),
    ];
    for (name, field) in fields {
        let file = folder.join(format!("{name}.yaml")).display().to_string();
        let said = refused(cluster, &file)?;
        ensure!(
            said.contains("is invalid") && said.contains(field),
            "{name}: expected a refusal that names {field}, found: {said}"
        );
    }
    Ok(())
}

/// What the API server says when it refuses a manifest.
fn refused(cluster: &Cluster, file: &str) -> Result<String> {
    match cluster.kubectl(&["apply", "-f", file]) {
        Ok(said) => bail!("{file} was accepted: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn columns(cluster: &Cluster) -> Result<()> {
    let table = cluster.kubectl(&["get", "ds4"])?;
    let mut lines = table.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(
        titles == ["NAME", "READY", "PIPELINES", "LOADED", "REVISION", "MODEL", "AGE"],
        "columns: {titles:?}"
    );
    // Nothing is fetched here, so LOADED is empty.
    let row: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(
        row.len() == 6 && row[..3] == ["quickstart", "True", "1/1"] && row[4] == "quickstart",
        "row: {row:?}"
    );
    Ok(())
}

fn spread(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "ds4.dev/name=quickstart",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(nodes.len() == NODES, "pods are on {nodes:?}");
    Ok(())
}

fn openai(address: &str) -> Result<()> {
    let client = repository::root().join("tests/cluster/openai_client.py");
    let said = process::output(
        Command::new(python::environment("openai", &["openai==1.109.1"])?)
            .arg(client)
            .args([address, "quickstart"]),
    )?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    // The same question again: nothing of it is left to compute.
    let known = ["disaggregated", "local; reason=every prompt token is cached"];
    ensure!(
        answer["decision"] == "disaggregated"
            && known.contains(&answer["streamed_decision"].as_str().unwrap_or_default()),
        "decisions: {answer}"
    );
    ensure!(
        answer["whole"] == answer["streamed"] && answer["whole"] != "",
        "whole and streamed differ: {answer}"
    );
    ensure!(
        answer["completion_tokens"] == 16 && answer["finish"] == "length",
        "usage: {answer}"
    );
    ensure!(answer["models"][0] == "quickstart", "models: {answer}");
    Ok(())
}

fn connected(trace: &crate::trace::Trace) -> Result<()> {
    // NAME-STAGE-REVISION-ORDINAL: the revision is not known here.
    let sources: Vec<&str> = trace
        .sources()
        .into_iter()
        .filter_map(|pod| Some(pod.rsplit_once('-')?.0.rsplit_once('-')?.0))
        .collect();
    ensure!(
        sources == ["quickstart-early", "quickstart-middle", "quickstart-output"],
        "pods in the trace: {sources:?}"
    );
    let root = trace.roots().next().context("a root")?;
    ensure!(root.name == "POST /v1/chat/completions", "root: {}", root.name);
    // The streamed request lasts until its last part; the task that computed it may end a moment later.
    let late = trace
        .0
        .iter()
        .find(|span| span.outlived(root) > Duration::from_millis(50));
    ensure!(late.is_none(), "a span outlives its request: {late:?}");
    let mut handoffs = 0;
    for span in trace.named("ds4.kv.handoff") {
        handoffs += 1;
        for key in ["bytes", "rows", "duration_ms"] {
            let value: f64 = span
                .attribute(key)
                .and_then(|text| text.parse().ok())
                .with_context(|| format!("{key} of {}", span.name))?;
            ensure!(value > 0.0, "{key}: {value}");
        }
    }
    ensure!(handoffs == 2, "{handoffs} handoffs");
    for name in ["ds4.queue", "ds4.prefill", "ds4.decode"] {
        ensure!(trace.named(name).count() == 1, "no span {name}");
    }
    let failed = trace.0.iter().find(|span| span.attribute("error").is_some());
    ensure!(failed.is_none(), "a span has an error: {failed:?}");
    Ok(())
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    let said = cluster.helm(&["uninstall", "ds4", "-n", SYSTEM, "--wait"])?;
    ensure!(
        said.contains("kept") && said.contains("ds4deployments.ds4.dev"),
        "helm said: {said}"
    );
    let pods = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "ds4.dev/name=quickstart",
        "-o",
        "jsonpath={.items[*].status.phase}",
    ])?;
    ensure!(
        pods == "Running Running Running",
        "pods after helm uninstall: {pods}"
    );
    let left = cluster.kubectl(&["get", "ds4", "-o", "name"])?;
    ensure!(
        left.trim() == "ds4deployment.ds4.dev/quickstart",
        "deployments after helm uninstall: {left}"
    );
    Ok(())
}

fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "ds4", "quickstart", "--wait"])?;
    wait(
        "waiting for the garbage collector",
        Duration::from_secs(120),
        || {
            let kinds = "statefulsets,pods,services,serviceaccounts,poddisruptionbudgets,networkpolicies,controllerrevisions,endpointslices,configmaps,secrets,persistentvolumeclaims";
            let left = cluster.kubectl(&["get", kinds, "-n", "default", "-o", "name"])?;
            let ours: Vec<&str> = left.lines().filter(|line| line.contains("quickstart")).collect();
            Ok(if ours.is_empty() {
                Probe::Ready(())
            } else {
                Probe::Waiting(ours.join(" "))
            })
        },
    )?;
    if cluster.kubectl(&["get", "ds4", "-o", "name"])?.trim().is_empty() {
        Ok(())
    } else {
        bail!("a deployment is left")
    }
}
