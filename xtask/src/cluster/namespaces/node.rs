//! One node: its configuration files, its first process, and how to run something inside it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::addresses;
use crate::cluster::Cluster;
use crate::images::Name;
use crate::process::Started;
use crate::repository;
use crate::tools;

/// Files that a node reads, with `@NAMES@` to fill in.
const TEMPLATES: [&str; 4] = [
    "containerd.toml",
    "kubelet.yaml",
    "kube-proxy.yaml",
    "pods.conflist",
];

pub(super) fn start(cluster: &mut Cluster, number: usize) -> Result<()> {
    let name = format!("node{number}");
    let folder = folder(cluster, number);
    std::fs::create_dir_all(&folder)?;
    configure(cluster, number)?;
    let process = Started::spawn(
        &name,
        Command::new("/bin/sh")
            .arg(scripts().join("start-node.sh"))
            .env("CLUSTER", &cluster.name)
            .env("NODE", &name)
            .env("NODE_DIR", &folder)
            .env("NODE_IP", addresses::node(number))
            .env("TOOLS", tools::KUBE.build()?)
            .env("CGROUPS_V1", cgroups_v1()?.join(" ")),
        &cluster.folder().join("logs"),
    )?;
    link_logs(cluster, number)?;
    cluster.remember(process)
}

fn configure(cluster: &Cluster, number: usize) -> Result<()> {
    let pki = cluster.folder().join("pki");
    let values = [
        ("@NODE@", format!("node{number}")),
        ("@PKI@", pki.display().to_string()),
        ("@PODS@", addresses::pods(number)),
        ("@CNI@", tools::CNI_PLUGINS.to_owned()),
        ("@PAUSE@", Name::Pause.reference().to_owned()),
    ];
    let folder = folder(cluster, number);
    for file in TEMPLATES {
        let mut text =
            std::fs::read_to_string(scripts().join(file)).with_context(|| format!("reading {file}"))?;
        for (name, value) in &values {
            text = text.replace(name, value);
        }
        std::fs::write(folder.join(file), text)?;
    }
    std::fs::copy(
        pki.join(format!("node{number}.kubeconfig")),
        folder.join("kubelet.kubeconfig"),
    )?;
    Ok(())
}

/// Logs of a node's programs are kept with the others after the node's folder is gone.
fn link_logs(cluster: &Cluster, number: usize) -> Result<()> {
    for program in ["containerd", "kubelet", "kube-proxy"] {
        let log = cluster.folder().join(format!("logs/node{number}-{program}.log"));
        std::fs::File::create(&log)?;
        let place = folder(cluster, number).join(format!("{program}.log"));
        let _ = std::fs::remove_file(&place);
        std::fs::hard_link(&log, &place)?;
    }
    Ok(())
}

/// A command that runs what follows inside a node.
pub(super) fn enter(cluster: &Cluster, number: usize) -> Result<Command> {
    let name = format!("node{number}");
    let process = cluster
        .state
        .processes
        .iter()
        .find(|process| process.name == name)
        .with_context(|| format!("{name} was not started"))?;
    process.check()?;
    let pid = process.pid;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let first = children
        .split_whitespace()
        .next()
        .with_context(|| format!("{name} has no first process yet"))?;
    let mut command = Command::new("nsenter");
    command.args([
        "--target", first, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
    ]);
    Ok(command)
}

/// Names of the mounted version 1 hierarchies, for example `memory` or `cpu,cpuacct`; none where only version 2 is.
pub(super) fn cgroups_v1() -> Result<Vec<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(hierarchies(&mounts))
}

fn hierarchies(mounts: &str) -> Vec<String> {
    let mut names: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            let name = place.strip_prefix("/sys/fs/cgroup/")?;
            (kind == "cgroup").then(|| name.to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn folder(cluster: &Cluster, number: usize) -> PathBuf {
    cluster.folder().join(format!("nodes/node{number}"))
}

fn scripts() -> PathBuf {
    repository::root().join("tests/cluster/namespaces")
}

#[cfg(test)]
mod tests {
    use super::hierarchies;

    #[test]
    fn hierarchies_of_version_1_are_found_beside_version_2() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(hierarchies(mounts), ["cpu,cpuacct", "memory"]);
        assert!(hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").is_empty());
    }
}
