//! A cluster of Docker containers, made by kind. kind itself is built from its Go module.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::Cluster;
use super::state::Forward;
use crate::process::{self, Started, free_address};
use crate::progress::step;
use crate::tools;

pub(super) fn up(cluster: &Cluster) -> Result<()> {
    let config = cluster.folder().join("kind.yaml");
    std::fs::write(&config, configuration(cluster.state.nodes))?;
    let log = cluster.folder().join("logs/kind.log");
    step("kind creates the nodes", || {
        process::logged(
            kind(cluster)?
                .args(["create", "cluster", "--wait", "120s", "--config"])
                .arg(&config)
                .arg("--kubeconfig")
                .arg(cluster.kubeconfig())
                .args(node_image()),
            &log,
        )
    })
}

pub(super) fn down(cluster: &Cluster) -> Result<()> {
    process::output(kind(cluster)?.args(["delete", "cluster"])).map(drop)
}

pub(super) fn load(cluster: &Cluster, archive: &Path) -> Result<()> {
    process::output(kind(cluster)?.args(["load", "image-archive"]).arg(archive)).map(drop)
}

/// The API server carries the bytes to one pod of the Service.
pub(super) fn forward(cluster: &Cluster, namespace: &str, service: &str, port: u16) -> Result<Forward> {
    let local = free_address()?.port();
    let name = format!("forward-{service}-{port}");
    let process = Started::spawn(
        &name,
        cluster
            .command("kubectl")?
            .args(["port-forward", "--namespace", namespace])
            .args([format!("service/{service}"), format!("{local}:{port}")]),
        &cluster.folder().join("logs"),
    )?;
    Ok(Forward {
        address: format!("127.0.0.1:{local}"),
        processes: vec![process],
    })
}

fn kind(cluster: &Cluster) -> Result<Command> {
    let mut command = Command::new(tools::KIND.build()?.join("kind"));
    command.env("KIND_CLUSTER_NAME", format!("ds4-{}", cluster.name));
    Ok(command)
}

/// Another Kubernetes version than kind's own, for a matrix of them.
fn node_image() -> Vec<String> {
    let image = std::env::var("DS4_KIND_IMAGE").unwrap_or_default();
    if image.is_empty() {
        Vec::new()
    } else {
        vec!["--image".into(), image]
    }
}

/// The first node also runs the control plane, and pods are allowed on it.
fn configuration(nodes: usize) -> String {
    let mut text =
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n".to_owned();
    for _ in 1..nodes {
        text += "- role: worker\n";
    }
    text
}
