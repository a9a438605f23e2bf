//! Output pods and stages as processes of this machine, for measurements, long runs and clients.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bench::Cpus;
use crate::process::{self, Started, free_address};
use crate::progress::{Probe, wait};
use crate::repository;

/// The model id that is asked for.
pub(crate) const MODEL: &str = "micro";
/// Layers of the stages; the output pod has the last one of the micro model, and all of them besides.
const STAGES: [&str; 2] = ["0:0", "1:1"];
/// How long a process may take to come up; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The processors of the output pod, and those of the stages together. In a cluster each has a node of its own; here they would take each
/// other's time.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    pub(crate) output: Cpus,
    pub(crate) stages: Cpus,
}

/// An output pod over the micro model, with two stages or without.
pub(crate) struct Server {
    pub(crate) url: String,
    program: PathBuf,
    model: PathBuf,
    folder: PathBuf,
    nodes: Option<Nodes>,
    addresses: Vec<String>,
    stages: Vec<Started>,
    output: Option<Started>,
}

impl Server {
    fn new(folder: &Path, nodes: Option<Nodes>) -> Result<Self> {
        let program = repository::target().join("debug/ds4");
        ensure!(
            program.exists(),
            "{}: not built; `cargo build --bin ds4` first",
            program.display()
        );
        std::fs::create_dir_all(folder)?;
        let model = folder.join("micro.gguf");
        process::output(
            Command::new(&program)
                .args(["synth", "--preset", "micro", "--out"])
                .arg(&model),
        )?;
        Ok(Self {
            url: String::new(),
            program,
            model,
            folder: folder.to_owned(),
            nodes,
            addresses: Vec::new(),
            stages: Vec::new(),
            output: None,
        })
    }

    /// No stage.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn alone(folder: &Path, nodes: Option<Nodes>, flags: &[&str]) -> Result<Self> {
        let mut server = Self::new(folder, nodes)?;
        server.serve("alone", flags)?;
        Ok(server)
    }

    /// Over two stages.
    ///
    /// # Errors
    /// When a process does not come up.
    pub(crate) fn over_stages(folder: &Path, nodes: Option<Nodes>, flags: &[&str]) -> Result<Self> {
        let mut server = Self::new(folder, nodes)?;
        for _ in STAGES {
            server.addresses.push(free_address()?.to_string());
        }
        for stage in 0..STAGES.len() {
            let started = server.start_stage(stage)?;
            server.stages.push(started);
        }
        let stages = server.addresses.join(",");
        let route = ["--layers", "2:output", "--stages", &stages];
        server.serve("output", &[&route, flags].concat())?;
        Ok(server)
    }

    fn serve(&mut self, name: &str, flags: &[&str]) -> Result<()> {
        let address = free_address()?.to_string();
        self.url = format!("http://{address}");
        let mut command = Command::new(&self.program);
        command
            .args(["serve", "--model-name", MODEL, "--listen", &address, "--model"])
            .arg(&self.model)
            .args(flags)
            .env("RUST_LOG", "error");
        let processors = self.nodes.as_ref().map(|nodes| &nodes.output);
        self.output = Some(self.spawn(name, &mut command, processors)?);
        let ready = format!("{}/readyz", self.url);
        wait("it is ready", PATIENCE, || {
            for process in self.output.iter().chain(&self.stages) {
                process.check()?;
            }
            Ok(match ureq::get(&ready).call() {
                Ok(_) => Probe::Ready(()),
                Err(_) => Probe::Waiting(String::new()),
            })
        })
    }

    fn start_stage(&self, stage: usize) -> Result<Started> {
        let mut command = Command::new(&self.program);
        command
            .args([
                "stage",
                "--layers",
                STAGES[stage],
                "--listen",
                &self.addresses[stage],
                "--model",
            ])
            .arg(&self.model)
            .args(["--sessions", "256"])
            .env("RUST_LOG", "error");
        let processors = self.nodes.as_ref().map(|nodes| &nodes.stages);
        self.spawn(&format!("stage-{stage}"), &mut command, processors)
    }

    fn spawn(&self, name: &str, command: &mut Command, processors: Option<&Cpus>) -> Result<Started> {
        let mut start = || Started::spawn(name, command, &self.folder);
        match processors {
            Some(processors) => processors.during(start),
            None => start(),
        }
    }

    /// The output pod.
    pub(crate) const fn output(&self) -> Option<&Started> {
        self.output.as_ref()
    }

    pub(crate) fn stage(&self, stage: usize) -> &Started {
        &self.stages[stage]
    }

    pub(crate) const fn count(&self) -> usize {
        self.stages.len()
    }

    /// Starts a stage again that has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn restart(&mut self, stage: usize) -> Result<()> {
        self.stages[stage] = self.start_stage(stage)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in self.output.iter().chain(&self.stages) {
            process.end(Duration::ZERO);
        }
    }
}
