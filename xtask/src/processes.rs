//! `cargo xtask demo --provider processes`: the quickstart's stages as processes of this machine, without a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ds4_api::{DS4Deployment, Stage};

use crate::demo::{ask, print_answer};
use crate::process::{self, Started};
use crate::progress::{Probe, step, wait};
use crate::repository;

/// Where everything of this demo goes.
fn folder() -> PathBuf {
    repository::cache().join("processes")
}

/// Processes that end when this is dropped.
#[derive(Default)]
struct Running(Vec<Started>);

impl Drop for Running {
    fn drop(&mut self) {
        for process in self.0.iter().rev() {
            process.end(Duration::from_secs(5));
        }
    }
}

/// Starts the stages of `examples/quickstart.yaml`, asks, and ends them.
///
/// # Errors
/// When something cannot be built or started.
pub fn run() -> Result<()> {
    eprintln!("provider: processes (the stages of examples/quickstart.yaml on this machine, no cluster)");
    let manifest = std::fs::read_to_string(repository::root().join("examples/quickstart.yaml"))?;
    let deployment: DS4Deployment = serde_yaml::from_str(&manifest).context("examples/quickstart.yaml")?;
    let program = build()?;
    let model = synthetic(&deployment, &program)?;
    let mut running = Running::default();
    let mut addresses = Vec::new();
    for stage in deployment.spec.pipeline.ordered() {
        let process = start(&deployment, stage, &program, &model, &addresses)?;
        running.0.push(process.clone());
        let address = wait(
            &format!("stage {} (layers {})", stage.name, stage.layers.argument()),
            Duration::from_secs(60),
            || listening(&process),
        )?;
        addresses.push(address);
    }
    let output = addresses.last().context("no output stage")?;
    let url = format!("http://{output}");
    wait("waiting for the route", Duration::from_secs(60), || {
        let ready = Command::new("curl")
            .args(["-sf", &format!("{url}/readyz")])
            .output()
            .context("starting curl")?;
        Ok(if ready.status.success() {
            Probe::Ready(())
        } else {
            Probe::Waiting(String::new())
        })
    })?;
    println!("POST {url}/v1/chat/completions");
    print_answer(&ask(Command::new("curl"), &url, &deployment.spec.model.name)?)
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = folder().join("build.log");
    step("building ds4", || {
        process::logged(
            Command::new(cargo)
                .args(["build", "--package", "ds4-cli"])
                .current_dir(repository::root()),
            &log,
        )
    })?;
    Ok(repository::target().join("debug/ds4"))
}

fn synthetic(deployment: &DS4Deployment, program: &Path) -> Result<PathBuf> {
    let Some(source) = &deployment.spec.model.source.synthetic else {
        bail!("the quickstart's model is expected to be synthetic")
    };
    let model = folder().join("model.gguf");
    let mut command = Command::new(program);
    command
        .args(["synth", "--preset", source.preset.name(), "--out"])
        .arg(&model);
    if let Some(seed) = source.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    process::output(&mut command)?;
    Ok(model)
}

fn start(
    deployment: &DS4Deployment,
    stage: &Stage,
    program: &Path,
    model: &Path,
    before: &[String],
) -> Result<Started> {
    let spec = &deployment.spec;
    let mut command = Command::new(program);
    command.arg(if stage.layers.last.is_some() {
        "stage"
    } else {
        "serve"
    });
    command
        .arg("--model")
        .arg(model)
        .args(["--layers", &stage.layers.argument(), "--listen", "127.0.0.1:0"]);
    if stage.layers.last.is_none() {
        command.args(["--model-name", &spec.model.name, "--stages", &before.join(",")]);
        command.args(["--prefill-chunk", &spec.pipeline.prefill_chunk_tokens.to_string()]);
        command.args(["--min-prompt-tokens", &spec.handoff.min_prompt_tokens.to_string()]);
    }
    Started::spawn(&stage.name, &mut command, &folder())
}

/// The address that a process prints once it listens.
fn listening(process: &Started) -> Result<Probe<String>> {
    process.check()?;
    let said = std::fs::read_to_string(&process.log).unwrap_or_default();
    let address = said.lines().find_map(|line| line.strip_prefix("listening on "));
    Ok(address.map_or_else(
        || Probe::Waiting(String::new()),
        |address| Probe::Ready(address.to_owned()),
    ))
}
