//! `cargo xtask cluster`: a real Kubernetes of three nodes in network namespaces of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::images::{self, Name};
use crate::process::{self, is_root};
use crate::progress::{Probe, step, wait};
use crate::{repository, tools};

/// Namespace of the control plane, from which services are reachable.
const CONTROL_PLANE: &str = "/run/netns/ds4-cp";
/// Nodes of the cluster.
pub const NODES: usize = 3;

/// A running cluster.
pub struct Cluster {
    programs: PathBuf,
}

/// Whether this machine can run one; otherwise what it takes.
///
/// # Errors
/// Says what is missing.
pub fn possible() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the namespaces provider needs Linux; try: cargo xtask demo --provider processes");
    }
    if !is_root() {
        bail!(
            "the namespaces provider needs root (network namespaces, mounts); try: sudo -E cargo xtask demo, or --provider processes"
        );
    }
    Ok(())
}

fn state() -> PathBuf {
    repository::cache().join("cluster")
}

fn script(name: &str, programs: &Path) -> Command {
    let mut command = Command::new("bash");
    command
        .arg(repository::root().join("tests/cluster/namespaces").join(name))
        .env("RUN", state())
        .env("BIN", programs)
        .env("IMAGES", repository::cache().join("images"))
        .env("CNI_BIN", tools::CNI_PLUGINS);
    command
}

/// Starts a cluster with the project's images on every node; one that runs is ended first.
///
/// # Errors
/// When something cannot be built or started; logs lie under `.cache/cluster`.
pub fn up() -> Result<Cluster> {
    possible()?;
    tools::debian_packages()?;
    let programs = tools::KUBE.build()?;
    images::build(&Name::ALL)?;
    down()?;
    let log = repository::cache().join("cluster-up.log");
    step("starting the control plane and three nodes", || {
        process::logged(&mut script("up.sh", &programs), &log)
    })?;
    let cluster = Cluster { programs };
    wait("waiting for the nodes", Duration::from_secs(180), || {
        cluster.nodes()
    })?;
    let dns = repository::root().join("tests/cluster/coredns.yaml");
    cluster.kubectl(&["apply", "-f", &dns.display().to_string()])?;
    wait("waiting for DNS", Duration::from_secs(120), || {
        let ready = cluster.kubectl(&[
            "-n",
            "kube-system",
            "get",
            "deploy",
            "coredns",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ])?;
        Ok(if ready == "1" {
            Probe::Ready(())
        } else {
            Probe::Waiting(String::new())
        })
    })?;
    Ok(cluster)
}

/// Ends the cluster, if there is one.
///
/// # Errors
/// When the script cannot be run.
pub fn down() -> Result<()> {
    possible()?;
    let programs = tools::KUBE.programs()?;
    process::output(&mut script("down.sh", &programs)).map(|_| ())
}

/// The cluster that runs.
///
/// # Errors
/// When none does.
pub fn running() -> Result<Cluster> {
    if !Path::new(CONTROL_PLANE).exists() || !state().join("pki/admin.kubeconfig").exists() {
        bail!("no cluster runs; start one with: cargo xtask cluster up");
    }
    Ok(Cluster {
        programs: tools::KUBE.programs()?,
    })
}

impl Cluster {
    /// A command inside the cluster's network, with its kubeconfig.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={CONTROL_PLANE}"))
            .arg("--")
            .arg(program);
        command.env("KUBECONFIG", state().join("pki/admin.kubeconfig"));
        command
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command(self.programs.join("kubectl")).args(arguments))
    }

    /// Runs kubectl to a failure and returns what it said.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn kubectl_refused(&self, arguments: &[&str]) -> Result<String> {
        match self.kubectl(arguments) {
            Ok(said) => bail!("kubectl {} was accepted: {said}", arguments.join(" ")),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Runs helm and returns what it prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command(self.programs.join("helm")).args(arguments))
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let file = state().join("manifest.yaml");
        std::fs::write(&file, manifest).context("writing the manifest")?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])
            .map(|_| ())
    }

    /// Where the collector's file goes.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn traces(&self) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let folder = state().join("traces");
        std::fs::create_dir_all(&folder)?;
        // The collector runs as a user of its own.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        Ok(folder)
    }

    fn nodes(&self) -> Result<Probe<()>> {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        let ready = self.kubectl(&["get", "nodes", "-o", path])?;
        let count = ready
            .split_whitespace()
            .filter(|status| *status == "True")
            .count();
        Ok(if count == NODES {
            Probe::Ready(())
        } else {
            Probe::Waiting(format!("{count} of {NODES} nodes are ready"))
        })
    }

    /// What runs, for people.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn status(&self) -> Result<String> {
        Ok(format!(
            "{}\n{}",
            self.kubectl(&["get", "nodes", "-o", "wide"])?,
            self.kubectl(&["get", "pods", "-A", "-o", "wide"])?
        ))
    }
}
