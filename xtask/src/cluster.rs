//! `cargo xtask cluster`: a real Kubernetes of several nodes on this machine.
//!
//! With Docker at hand through kind; otherwise, on Linux as root, through namespaces: every node has its own network,
//! mount, process and cgroup namespaces, its own containerd, kubelet and kube-proxy.

mod kind;
mod namespaces;
mod state;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::images::Name;
use crate::process::{self, Started, found, is_root};
use crate::progress::{Probe, step, wait};
use crate::repository;
use crate::tools;

pub use namespaces::Mac;
pub use state::{Provider, State};

/// How long nodes and pods of a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster by its name.
pub struct Cluster {
    name: String,
    state: State,
}

/// Which provider serves on this machine, or why none does.
///
/// # Errors
/// With the remedy, when this machine has neither Docker nor root on Linux.
pub fn choose(wish: Option<Provider>) -> Result<Provider> {
    let docker = || {
        found("docker")
            && Command::new("docker")
                .arg("info")
                .output()
                .is_ok_and(|output| output.status.success())
    };
    let root = || cfg!(target_os = "linux") && is_root();
    match wish {
        Some(Provider::Kind) if !docker() => {
            bail!("the provider kind needs a running Docker: `docker info` fails")
        }
        Some(Provider::Namespaces) if !root() => bail!("the provider namespaces needs root on Linux"),
        Some(wish) => Ok(wish),
        None if docker() => Ok(Provider::Kind),
        None if root() => Ok(Provider::Namespaces),
        None => bail!(
            "no cluster can be made here: start Docker, or run as root on Linux (or use `cargo xtask demo --provider processes`)"
        ),
    }
}

impl Cluster {
    /// The cluster of that name as it was left, or `None`.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let state = State::read(&folder(name))?;
        Ok(state.map(|state| Self {
            name: name.to_owned(),
            state,
        }))
    }

    /// Brings up a cluster, or returns the one that is up already.
    ///
    /// # Errors
    /// When a part does not come up: then with the end of its log.
    pub fn up(name: &str, provider: Provider, nodes: usize) -> Result<Self> {
        ensure!((1..=9).contains(&nodes), "--nodes {nodes}: from 1 to 9");
        check_name(name)?;
        if let Some(cluster) = Self::find(name)? {
            if cluster.is_up() && cluster.state.nodes == nodes && cluster.state.provider == provider {
                eprintln!("  ✓ cluster {name} is up already");
                return Ok(cluster);
            }
            cluster.down()?;
        }
        let state = State::new(provider, nodes);
        state.write(&folder(name))?;
        let mut cluster = Self {
            name: name.to_owned(),
            state,
        };
        match provider {
            Provider::Namespaces => namespaces::up(&mut cluster)?,
            Provider::Kind => kind::up(&cluster)?,
        }
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    /// Ends what `up` started and removes what it made. Logs stay in the cluster's folder.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn down(mut self) -> Result<()> {
        let title = format!("taking down cluster {}", self.name);
        step(&title, || {
            self.end_forwards();
            match self.state.provider {
                Provider::Namespaces => namespaces::down(&self)?,
                Provider::Kind => kind::down(&self)?,
            }
            State::remove(&self.folder())
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was made.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.state.provider
    }

    /// Where its kubeconfig, keys, state and logs lie.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        folder(&self.name)
    }

    /// For `kubectl --kubeconfig`; works from this machine's own network.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder().join("kubeconfig")
    }

    /// Whether everything that was started still runs and the API answers.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state.processes.iter().all(Started::is_alive)
            && self
                .kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"])
                .is_ok()
    }

    /// Runs kubectl against it and returns what it prints.
    ///
    /// # Errors
    /// When kubectl fails: with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("kubectl")?.args(arguments))
    }

    /// Runs helm against it and returns what it prints.
    ///
    /// # Errors
    /// When helm fails: with what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("helm")?.args(arguments))
    }

    /// `kubectl` or `helm`, told which cluster.
    ///
    /// # Errors
    /// When the programs cannot be built.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(tools::KUBE.build()?.join(program));
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HELM_CACHE_HOME", repository::cache().join("helm"))
            .env("HELM_CONFIG_HOME", repository::cache().join("helm"))
            .env("HELM_DATA_HOME", repository::cache().join("helm"))
            .current_dir(repository::root());
        Ok(command)
    }

    /// Puts images on every node.
    ///
    /// # Errors
    /// When an archive is missing or a node refuses it.
    pub fn load(&self, images: &[Name]) -> Result<()> {
        for image in images {
            let archive = image.archive();
            ensure!(
                archive.exists(),
                "{} is missing: run `cargo xtask images`",
                archive.display()
            );
            step(
                &format!("loading {} on every node", image.reference()),
                || match self.state.provider {
                    Provider::Namespaces => namespaces::load(self, &archive),
                    Provider::Kind => kind::load(self, &archive),
                },
            )?;
        }
        Ok(())
    }

    /// A loopback address of this machine, `127.0.0.1:PORT`, behind which the Service is. It stays until `down`.
    ///
    /// # Errors
    /// When there is no such Service.
    pub fn forward(&mut self, namespace: &str, service: &str, port: u16) -> Result<String> {
        let key = format!("{namespace}/{service}:{port}");
        if let Some(forward) = self.state.forwards.get(&key)
            && forward.processes.iter().all(Started::is_alive)
        {
            return Ok(forward.address.clone());
        }
        let forward = match self.state.provider {
            Provider::Namespaces => namespaces::forward(self, namespace, service, port)?,
            Provider::Kind => kind::forward(self, namespace, service, port)?,
        };
        let address = forward.address.clone();
        self.state.forwards.insert(key, forward);
        self.state.write(&self.folder())?;
        Ok(address)
    }

    /// Ends a forward: its Service is about to go, and another of the same name would have another address.
    ///
    /// # Errors
    /// When the cluster's state cannot be written.
    pub fn end_forward(&mut self, namespace: &str, service: &str, port: u16) -> Result<()> {
        if let Some(forward) = self
            .state
            .forwards
            .remove(&format!("{namespace}/{service}:{port}"))
        {
            forward.end();
        }
        self.state.write(&self.folder())
    }

    /// Another name for an image that lies on every node.
    ///
    /// # Errors
    /// With kind, or when a node does not have it.
    pub fn tag(&self, image: &str, other: &str) -> Result<()> {
        self.needs_namespaces("tagging images")?;
        namespaces::tag(self, image, other)
    }

    /// Unplugs a node from the network, or plugs it in again.
    ///
    /// # Errors
    /// With kind, or when there is no such node.
    pub fn plug(&self, node: usize, plugged: bool) -> Result<()> {
        self.needs_namespaces("unplugging a node")?;
        namespaces::plug(self, node, plugged)
    }

    /// Kills the process of a pod's container, as the kernel would.
    ///
    /// # Errors
    /// With kind, or when there is no such pod.
    pub fn kill_container(&self, pod: &str) -> Result<()> {
        self.needs_namespaces("killing a container's process")?;
        let (node, id) = self.container(pod)?;
        namespaces::kill_container(self, node, &id)
    }

    /// Stops the processes of a pod's container where they stand, or lets them go on.
    ///
    /// # Errors
    /// With kind, or when there is no such pod.
    pub fn pause_container(&self, pod: &str, paused: bool) -> Result<()> {
        self.needs_namespaces("pausing a container")?;
        let (node, id) = self.container(pod)?;
        namespaces::pause_container(self, node, &id, paused)
    }

    /// Runs a command on a node.
    ///
    /// # Errors
    /// With kind, or when the command fails.
    pub fn on_node(&self, node: usize, command: &[&str]) -> Result<String> {
        self.needs_namespaces("a command on a node")?;
        namespaces::on_node(self, node, command)
    }

    /// The node and the identifier of a pod's first container.
    fn container(&self, pod: &str) -> Result<(usize, String)> {
        let path = "jsonpath={.spec.nodeName} {.status.containerStatuses[0].containerID}";
        let said = self.kubectl(&["get", "pod", pod, "-o", path])?;
        let (node, id) = said.split_once(' ').context("a node and a container")?;
        let node = node.trim_start_matches("node").parse()?;
        Ok((node, id.trim().trim_start_matches("containerd://").to_owned()))
    }

    /// The machine that stands in for a Mac.
    ///
    /// # Errors
    /// With kind.
    pub fn mac(&self) -> Result<Mac> {
        self.needs_namespaces("a machine that stands in for a Mac")?;
        Ok(Mac::of(self))
    }

    /// Ends the API server.
    ///
    /// # Errors
    /// With kind, or when it is not there.
    pub fn stop_api(&mut self) -> Result<()> {
        self.needs_namespaces("stopping the API server")?;
        let place = self
            .state
            .processes
            .iter()
            .position(|process| process.name == "kube-apiserver")
            .context("the API server was not started")?;
        self.state.processes.remove(place).end(Duration::from_secs(1));
        self.state.write(&self.folder())
    }

    /// Starts the API server again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_api(&mut self) -> Result<()> {
        namespaces::start_api(self)
    }

    /// A command in the cluster's network, where pods' and Services' addresses are reached.
    ///
    /// # Errors
    /// With kind.
    pub fn inside(&self, program: &Path) -> Result<Command> {
        self.needs_namespaces("a process in the cluster's network")?;
        Ok(namespaces::inside(self, program))
    }

    /// Everything that the operator asked of the API server, a JSON object on each line.
    ///
    /// # Errors
    /// With kind.
    pub fn audit_log(&self) -> Result<PathBuf> {
        self.needs_namespaces("the audit log")?;
        Ok(namespaces::audit_log(self))
    }

    fn needs_namespaces(&self, what: &str) -> Result<()> {
        ensure!(
            self.state.provider == Provider::Namespaces,
            "{what}: only with the provider namespaces"
        );
        Ok(())
    }

    fn end_forwards(&mut self) {
        for forward in std::mem::take(&mut self.state.forwards).into_values() {
            forward.end();
        }
    }

    /// Remembers a process, so that `down` finds it even when what follows fails.
    fn remember(&mut self, process: Started) -> Result<()> {
        self.state.processes.push(process);
        self.state.write(&self.folder())
    }

    fn wait_for_nodes(&self) -> Result<()> {
        let title = format!("{} nodes ready", self.state.nodes);
        wait(&title, PATIENCE, || {
            for process in &self.state.processes {
                process.check()?;
            }
            let path = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} {end}";
            let seen = self.kubectl(&["get", "nodes", "-o", path]).unwrap_or_default();
            let ready = seen.split(' ').filter(|node| node.ends_with("=True")).count();
            Ok(if ready >= self.state.nodes {
                Probe::Ready(())
            } else {
                Probe::Waiting(seen.trim().to_owned())
            })
        })
    }

    /// What `status` shows: the provider, every process, the nodes and the pods.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn describe(&self) -> Result<String> {
        let mut text = format!("cluster {} ({})\n", self.name, self.state.provider);
        text += &format!("kubeconfig {}\n", self.kubeconfig().display());
        for process in &self.state.processes {
            let state = if process.is_alive() { "runs" } else { "ENDED" };
            text += &format!(
                "  {:24} {state:6} pid {:7} {}\n",
                process.name,
                process.pid,
                process.log.display()
            );
        }
        for (service, forward) in &self.state.forwards {
            text += &format!("  {service} is at {}\n", forward.address);
        }
        text += &self.kubectl(&["get", "nodes"])?;
        text += &self.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"])?;
        Ok(text)
    }
}

fn folder(name: &str) -> PathBuf {
    repository::cache().join("cluster").join(name)
}

/// Names become names of network namespaces, cgroups and containers.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    ensure!(
        (1..=12).contains(&name.len()) && name.chars().all(plain),
        "--name {name}: 1 to 12 lower-case letters and digits"
    );
    Ok(())
}
