//! A cluster of Linux namespaces.
//!
//! The control plane's network namespace holds the bridge that every node is plugged into; the machine's own network
//! is left as it is. Bytes come in from the loopback interface through pairs of socat over Unix sockets, which no
//! network namespace separates.

mod addresses;
mod control_plane;
mod mac;
mod network;
mod node;
mod pki;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::state::Forward;
use super::{Cluster, PATIENCE};
use crate::images::Name;
use crate::process::{self, Started, free_address};
use crate::progress::{Probe, step, wait};
use crate::tools;

/// Port of the API server in its namespace.
const API_PORT: u16 = 6443;

pub(super) fn up(cluster: &mut Cluster) -> Result<()> {
    tools::debian_packages()?;
    tools::KUBE.build()?;
    crate::images::build(&[Name::Pause, Name::CoreDns])?;
    let api_port = free_address()?.port();
    step("keys and certificates", || {
        pki::write(&cluster.folder(), cluster.state.nodes, api_port)
    })?;
    step("networks", || network::up(&cluster.name, cluster.state.nodes))?;
    control_plane::start_api(cluster)?;
    let forward = tunnel(cluster, "api", api_port, &format!("127.0.0.1:{API_PORT}"))?;
    for process in forward.processes {
        cluster.remember(process)?;
    }
    wait_for_api(cluster)?;
    control_plane::start_controllers(cluster)?;
    for number in 1..=cluster.state.nodes {
        node::start(cluster, number)?;
    }
    wait_for_runtimes(cluster)?;
    cluster.load(&[Name::Pause, Name::CoreDns])?;
    dns(cluster)
}

pub use mac::Mac;

pub(super) fn down(cluster: &Cluster) -> Result<()> {
    Mac::of(cluster).remove()?;
    // A node's processes end with its first one; nothing in it is worth waiting for.
    for process in cluster.state.processes.iter().rev() {
        process.end(Duration::ZERO);
    }
    network::down(&cluster.name, cluster.state.nodes)?;
    remove_cgroups(&cluster.name)?;
    for folder in ["etcd", "pki", "nodes"] {
        remove(&cluster.folder().join(folder))?;
    }
    remove(&sockets(cluster))
}

pub(super) fn load(cluster: &Cluster, archive: &Path) -> Result<()> {
    for number in 1..=cluster.state.nodes {
        let mut command = node::enter(cluster, number)?;
        process::output(
            command
                .args(["ctr", "--namespace", "k8s.io", "images", "import"])
                .arg(archive),
        )?;
    }
    Ok(())
}

pub(super) fn tag(cluster: &Cluster, image: &str, other: &str) -> Result<()> {
    for number in 1..=cluster.state.nodes {
        let mut command = node::enter(cluster, number)?;
        command.args([
            "ctr",
            "--namespace",
            "k8s.io",
            "images",
            "tag",
            "--force",
            image,
            other,
        ]);
        process::output(&mut command)?;
    }
    Ok(())
}

pub(super) fn plug(cluster: &Cluster, number: usize, plugged: bool) -> Result<()> {
    network::plug(&cluster.name, number, plugged)
}

pub(super) fn kill_container(cluster: &Cluster, number: usize, id: &str) -> Result<()> {
    let mut command = node::enter(cluster, number)?;
    command.args([
        "ctr",
        "--namespace",
        "k8s.io",
        "tasks",
        "kill",
        "--signal",
        "SIGKILL",
        id,
    ]);
    process::output(&mut command).map(drop)
}

pub(super) fn pause_container(cluster: &Cluster, number: usize, id: &str, paused: bool) -> Result<()> {
    let what = if paused { "pause" } else { "resume" };
    on_node(
        cluster,
        number,
        &["ctr", "--namespace", "k8s.io", "tasks", what, id],
    )
    .map(drop)
}

pub(super) fn on_node(cluster: &Cluster, number: usize, command: &[&str]) -> Result<String> {
    process::output(node::enter(cluster, number)?.args(command))
}

pub(super) fn start_api(cluster: &mut Cluster) -> Result<()> {
    control_plane::start_api_server(cluster)?;
    wait_for_api(cluster)
}

pub(super) fn inside(cluster: &Cluster, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!(
            "--net=/run/netns/{}",
            network::control_plane(&cluster.name)
        ))
        .arg(program);
    command
}

pub(super) fn audit_log(cluster: &Cluster) -> PathBuf {
    control_plane::audit_log(cluster)
}

/// Through the Service's own address: kube-proxy of the first node chooses the pod, as for any client in the cluster.
pub(super) fn forward(cluster: &Cluster, namespace: &str, service: &str, port: u16) -> Result<Forward> {
    let path = "jsonpath={.spec.clusterIP}";
    let address = cluster.kubectl(&["get", "service", service, "--namespace", namespace, "-o", path])?;
    let name = format!("{service}-{port}");
    tunnel(
        cluster,
        &name,
        free_address()?.port(),
        &format!("{address}:{port}"),
    )
}

/// From `127.0.0.1:local` to an address in the control plane's network.
fn tunnel(cluster: &Cluster, name: &str, local: u16, target: &str) -> Result<Forward> {
    let folder = sockets(cluster);
    std::fs::create_dir_all(&folder)?;
    let socket = folder.join(format!("{name}.sock"));
    let _ = std::fs::remove_file(&socket);
    let logs = cluster.folder().join("logs");
    let inside = Started::spawn(
        &format!("{name}-inside"),
        Command::new("nsenter")
            .arg(format!(
                "--net=/run/netns/{}",
                network::control_plane(&cluster.name)
            ))
            .args(["socat", &format!("UNIX-LISTEN:{},fork", socket.display())])
            .arg(format!("TCP:{target}")),
        &logs,
    )?;
    let outside = Started::spawn(
        &format!("{name}-outside"),
        Command::new("socat")
            .arg(format!("TCP-LISTEN:{local},bind=127.0.0.1,reuseaddr,fork"))
            .arg(format!("UNIX-CONNECT:{}", socket.display())),
        &logs,
    )?;
    let forward = Forward {
        address: format!("127.0.0.1:{local}"),
        processes: vec![inside, outside],
    };
    retry(|| {
        let connected = std::net::TcpStream::connect(&forward.address);
        connected.and_then(|_| std::fs::metadata(&socket)).map(drop)
    })
    .with_context(|| format!("{name}: nothing listens on {}", forward.address))?;
    Ok(forward)
}

/// Unix sockets have short paths (108 bytes): not in the cluster's folder.
fn sockets(cluster: &Cluster) -> PathBuf {
    Path::new("/run/ds4-cluster").join(&cluster.name)
}

fn wait_for_api(cluster: &Cluster) -> Result<()> {
    wait("the API server answers", PATIENCE, || {
        for process in &cluster.state.processes {
            process.check()?;
        }
        let answer = cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]);
        Ok(match answer {
            Ok(_) => Probe::Ready(()),
            Err(_) => Probe::Waiting(String::new()),
        })
    })
}

fn wait_for_runtimes(cluster: &Cluster) -> Result<()> {
    wait("the nodes' container runtimes answer", PATIENCE, || {
        for number in 1..=cluster.state.nodes {
            let answers = node::enter(cluster, number)
                .and_then(|mut command| process::output(command.args(["ctr", "version"])))
                .is_ok();
            if !answers {
                return Ok(Probe::Waiting(format!("node{number}")));
            }
        }
        Ok(Probe::Ready(()))
    })
}

fn dns(cluster: &Cluster) -> Result<()> {
    step("cluster DNS", || {
        cluster.kubectl(&["apply", "-f", "tests/cluster/manifests/coredns.yaml"])?;
        let deployment = [
            "rollout",
            "status",
            "deployment/coredns",
            "--namespace=kube-system",
            "--timeout=180s",
        ];
        cluster.kubectl(&deployment).map(drop)
    })
}

/// Cgroups can be removed when their last process is gone, from the leaves up.
fn remove_cgroups(name: &str) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let mut parents = vec![top.to_path_buf()];
    parents.extend(
        node::cgroups_v1()?
            .into_iter()
            .map(|controller| top.join(controller)),
    );
    for parent in parents {
        let group = parent.join(format!("ds4-{name}"));
        retry(|| remove_cgroup(&group)).with_context(|| format!("removing {}", group.display()))?;
    }
    Ok(())
}

fn remove_cgroup(group: &Path) -> std::io::Result<()> {
    if !group.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_cgroup(&path)?;
        }
    }
    std::fs::remove_dir(group)
}

/// Removes a folder or a file; gone already is as good.
fn remove(path: &Path) -> Result<()> {
    let gone = || {
        if path.is_dir() {
            std::fs::remove_dir_all(path)
        } else if path.exists() {
            std::fs::remove_file(path)
        } else {
            Ok(())
        }
    };
    retry(gone).with_context(|| format!("removing {}", path.display()))
}

/// Mounts and cgroups of a process that was just killed stay busy for a moment.
fn retry(mut work: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let start = Instant::now();
    loop {
        match work() {
            Err(_) if start.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(100))
            }
            outcome => return outcome,
        }
    }
}
