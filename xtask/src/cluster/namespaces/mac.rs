//! A Linux process in a network namespace of its own, in the place of a Mac: its runner's logic is the same.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{API_PORT, addresses, network};
use crate::cluster::Cluster;
use crate::images::Name;
use crate::process::{self, Started};
use crate::progress::step;
use crate::repository;

/// Name of its node.
const NODE: &str = "mac-1";
/// Renewals of its Lease: the controllers here wait 12 s for one.
const HEARTBEAT_SECONDS: u64 = 2;

/// The machine.
pub struct Mac {
    cluster: String,
    /// Engines run as an ordinary user: their folder must not lie under a private one.
    folder: PathBuf,
    logs: PathBuf,
    admin: PathBuf,
}

impl Mac {
    /// Name of its node.
    pub const NODE: &str = NODE;
    /// Its address, its pods' too.
    pub const ADDRESS: &str = addresses::MAC;
    /// Port of its kubelet API.
    pub const PORT: u16 = 10250;

    pub(in crate::cluster) fn of(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.name.clone(),
            folder: Path::new("/var/lib/ds4-cluster").join(&cluster.name).join(NODE),
            logs: cluster.folder().join("logs"),
            admin: cluster.kubeconfig(),
        }
    }

    /// Plugs it in, and gives it a configuration and an invitation. Nothing runs yet.
    ///
    /// # Errors
    /// When something of it is left from before, or no invitation can be had.
    pub fn set_up(&self) -> Result<()> {
        self.build()?;
        self.remove()?;
        network::plug_in_mac(&self.cluster)?;
        std::fs::create_dir_all(self.models())?;
        std::fs::copy(engine(), self.folder.join("ds4"))?;
        let server = format!("https://{}:{API_PORT}", addresses::CONTROL_PLANE);
        let invitation = process::output(&mut self.admin_command(&["invite", NODE, "--server", &server])?)?;
        std::fs::write(self.folder.join("invitation.yaml"), invitation)?;
        self.configure("10Mi")
    }

    /// With the whole workspace's features, as `cargo xtask test` has built it just before.
    fn build(&self) -> Result<()> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        step("building ds4-runner", || {
            process::logged(
                Command::new(cargo)
                    .args(["build", "--workspace", "--bin", "ds4-runner"])
                    .current_dir(repository::root()),
                &self.logs.join("build-ds4-runner.log"),
            )
        })
    }

    /// Writes its configuration, with the memory below which pods are evicted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, eviction_memory: &str) -> Result<()> {
        let config = json!({
            "node": NODE, "address": addresses::MAC, "port": Self::PORT, "standIn": true,
            "root": self.folder.join("root"), "invitation": self.folder.join("invitation.yaml"),
            "hostPathRoots": [self.models()],
            "heartbeatSeconds": HEARTBEAT_SECONDS, "reservedMemory": "1Gi", "evictionMemory": eviction_memory,
            "engines": [
                // There is no Metal here, and nothing says so: the pod's status tells that the flag was replaced.
                self.engine(Name::Engine.reference()),
            ],
        });
        // JSON is YAML.
        std::fs::write(self.config(), config.to_string()).context("writing the runner's configuration")
    }

    fn engine(&self, image: &str) -> serde_json::Value {
        json!({"image": image, "version": env!("CARGO_PKG_VERSION"), "program": self.folder.join("ds4"), "arguments": ["--backend", "cpu"]})
    }

    /// Starts its runner.
    ///
    /// # Errors
    /// When one runs already.
    pub fn start(&self) -> Result<Started> {
        if let Some(old) = self.runner()? {
            ensure!(!old.is_alive(), "the runner runs already as process {}", old.pid);
        }
        let runner = Started::spawn(
            "mac-1-runner",
            Command::new("nsenter")
                .arg(format!("--net=/run/netns/{}", network::mac(&self.cluster)))
                .arg(program()?)
                .args(["run", "--config"])
                .arg(self.config()),
            &self.logs,
        )?;
        std::fs::write(self.state(), serde_json::to_vec(&runner)?)?;
        Ok(runner)
    }

    /// Its runner, as it was last started.
    ///
    /// # Errors
    /// When what is remembered cannot be read.
    pub fn runner(&self) -> Result<Option<Started>> {
        if !self.state().exists() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&std::fs::read(self.state())?)?))
    }

    /// Approves its certificates as an administrator does.
    ///
    /// # Errors
    /// When they are not asked for.
    pub fn approve(&self) -> Result<Started> {
        Started::spawn(
            "mac-1-approve",
            &mut self.admin_command(&["approve", NODE])?,
            &self.logs,
        )
    }

    /// Unplugs it from the network, or plugs it in again.
    ///
    /// # Errors
    /// When it was never plugged in.
    pub fn plug(&self, plugged: bool) -> Result<()> {
        network::plug_mac(&self.cluster, plugged)
    }

    /// What runs on it, in the runner's own words.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn status(&self) -> Result<String> {
        process::output(
            Command::new(program()?)
                .args(["status", "--config"])
                .arg(self.config()),
        )
    }

    /// Folder under which pods may name paths.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    /// Ends its runner and its engines, and takes away everything of it but its logs.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove(&self) -> Result<()> {
        if let Some(runner) = self.runner()? {
            runner.end(Duration::from_secs(5));
        }
        if self.config().exists() {
            process::output(
                Command::new(program()?)
                    .args(["uninstall", "--config"])
                    .arg(self.config()),
            )?;
        }
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)?;
        }
        let name = network::mac(&self.cluster);
        if Path::new("/run/netns").join(&name).exists() {
            process::output(Command::new("ip").args(["netns", "delete", &name]))?;
        }
        Ok(())
    }

    fn admin_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(arguments).env("KUBECONFIG", &self.admin);
        Ok(command)
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    fn state(&self) -> PathBuf {
        self.folder.join("runner.json")
    }
}

/// The engine without debug information, as it lies in the image.
fn engine() -> PathBuf {
    let stripped = repository::cache().join("images/ds4");
    if stripped.exists() {
        stripped
    } else {
        repository::target().join("debug/ds4")
    }
}

/// The runner; [`Mac::set_up`] builds it.
fn program() -> Result<PathBuf> {
    let program = repository::target().join("debug/ds4-runner");
    if !program.exists() {
        bail!("{} is missing: cargo build -p ds4-runner", program.display());
    }
    Ok(program)
}
