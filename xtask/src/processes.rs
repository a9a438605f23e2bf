//! `cargo xtask demo --provider processes`: the quickstart's stages as processes of this machine, without a cluster.
//!
//! The manifest is read through the resource's own types, and every process gets the arguments that its pod would.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ds4_api::{DS4Deployment, Stage};
use serde_json::json;

use crate::ask::{ask, print};
use crate::process::{self, Started, found, free_address};
use crate::progress::{Probe, step, wait};
use crate::trace;
use crate::{repository, tools};

/// How long a process may take to load its model.
const PATIENCE: Duration = Duration::from_secs(60);

/// The whole demo; everything that was started is ended with it.
///
/// # Errors
/// When a process does not come up or the answer is not a disaggregated one.
pub fn run() -> Result<()> {
    eprintln!(
        "provider: processes (the stages of examples/quickstart.yaml on this machine; no cluster, no root)"
    );
    let deployment = manifest()?;
    let folder = repository::cache().join("processes");
    std::fs::create_dir_all(&folder)?;
    let mut demo = Demo {
        program: engine()?,
        folder,
        started: Vec::new(),
    };
    demo.model(&deployment)?;
    let traces = demo.collector()?;
    let address = demo.pipeline(&deployment, traces.as_ref())?;
    ask(&deployment.spec.model.name, &address)?;
    let Some(traces) = traces else {
        eprintln!("no trace: go is missing, and the collector is built from its Go modules");
        return Ok(());
    };
    let stages = deployment.spec.pipeline.stages.len() - 1;
    let trace = wait("the trace is in the collector's file", PATIENCE, || {
        trace::whole(&std::fs::read_to_string(&traces.file)?, stages)
    })?;
    print(&format!(
        "\ntrace over {}:\n{}",
        trace.sources().join(", "),
        trace.waterfall()
    ))
}

/// Where traces go, and where they are read back.
struct Traces {
    endpoint: String,
    file: PathBuf,
}

/// What runs for the demo. Dropping it ends every process.
struct Demo {
    program: PathBuf,
    folder: PathBuf,
    started: Vec<Started>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        for process in self.started.iter().rev() {
            process.end(Duration::from_secs(5));
        }
    }
}

impl Demo {
    fn model_file(&self) -> PathBuf {
        self.folder.join("model.gguf")
    }

    /// The file that the pods' first container writes.
    fn model(&self, deployment: &DS4Deployment) -> Result<()> {
        let source = &deployment.spec.model.source;
        let synthetic = source
            .synthetic
            .as_ref()
            .context("spec.model.source: expected synthetic: this demo brings no other model")?;
        let mut command = Command::new(&self.program);
        command.args(["synth", "--preset", synthetic.preset.name(), "--out"]);
        command.arg(self.model_file());
        if let Some(seed) = synthetic.seed {
            command.args(["--seed", &seed.to_string()]);
        }
        step("ds4 synth writes the model", || {
            process::output(&mut command).map(drop)
        })
    }

    /// A collector with a file behind it, where Go is at hand to build it.
    fn collector(&mut self) -> Result<Option<Traces>> {
        if !found("go") {
            return Ok(None);
        }
        let program = tools::COLLECTOR.build()?.join("otelcol");
        let (endpoint, file) = (free_address()?.to_string(), self.folder.join("traces.jsonl"));
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
        let config = json!({
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": endpoint}}}},
            "exporters": {"file": {"path": file, "flush_interval": "200ms"}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
            },
        });
        // JSON is YAML.
        let path = self.folder.join("collector.yaml");
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        self.start("collector", Command::new(program).arg("--config").arg(path))?;
        let port = endpoint.clone();
        self.wait("the collector listens", || {
            std::net::TcpStream::connect(&port).is_ok()
        })?;
        Ok(Some(Traces {
            endpoint: format!("http://{endpoint}"),
            file,
        }))
    }

    /// Starts every stage, then the output stage, and waits until the route is complete. Returns the HTTP address.
    fn pipeline(&mut self, deployment: &DS4Deployment, traces: Option<&Traces>) -> Result<String> {
        let stages = deployment.spec.pipeline.ordered();
        let Some((output, prefill)) = stages.split_last() else {
            bail!("spec.pipeline.stages: expected at least an output stage, found none");
        };
        let mut addresses = Vec::new();
        for stage in prefill {
            let address = free_address()?.to_string();
            let mut command = self.command("stage", stage, &address, traces);
            self.start_stage(stage, &mut command)?;
            addresses.push(address);
        }
        let address = free_address()?.to_string();
        let mut command = self.command("serve", output, &address, traces);
        command.args(serve_arguments(deployment));
        if !addresses.is_empty() {
            command.args(["--stages", &addresses.join(",")]);
        }
        self.start_stage(output, &mut command)?;
        let url = format!("http://{address}");
        let ready = format!("{url}/readyz");
        self.wait("every stage is loaded and the route is complete", || {
            process::output(Command::new("curl").args(["-fsS", "--max-time", "5", &ready])).is_ok()
        })?;
        Ok(url)
    }

    fn command(&self, program: &str, stage: &Stage, address: &str, traces: Option<&Traces>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(program).arg("--model").arg(self.model_file());
        command.args(["--layers", &stage.layers.argument(), "--listen", address]);
        // A pod's name tells the spans of one process from another's.
        command.env("POD_NAME", format!("quickstart-{}-0", stage.name));
        if let Some(traces) = traces {
            command.args(["--otlp-endpoint", &traces.endpoint]);
        }
        command
    }

    fn start_stage(&mut self, stage: &Stage, command: &mut Command) -> Result<()> {
        let layers = stage.layers.argument();
        eprintln!("  ds4 stage {} computes layers {layers}", stage.name);
        self.start(&stage.name, command)
    }

    fn start(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.started.push(Started::spawn(name, command, &self.folder)?);
        Ok(())
    }

    /// Waits, and fails at once when a process has ended.
    fn wait(&self, title: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        wait(title, PATIENCE, || {
            for process in &self.started {
                process.check()?;
            }
            Ok(if ready() {
                Probe::Ready(())
            } else {
                Probe::Waiting(String::new())
            })
        })
    }
}

/// What the manifest says beyond layers and addresses.
fn serve_arguments(deployment: &DS4Deployment) -> Vec<String> {
    let spec = &deployment.spec;
    let flags = [
        ("--model-name", spec.model.name.clone()),
        ("--prefill-chunk", spec.pipeline.prefill_chunk_tokens.to_string()),
        ("--window", spec.pipeline.window.to_string()),
        ("--min-prompt-tokens", spec.handoff.min_prompt_tokens.to_string()),
        ("--handoff-timeout", format!("{}s", spec.handoff.timeout_seconds)),
    ];
    flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

fn manifest() -> Result<DS4Deployment> {
    let path = repository::root().join("examples/quickstart.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| format!("{} is not a DS4Deployment", path.display()))
}

/// Builds `ds4` and returns it.
fn engine() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = repository::cache().join("processes/build.log");
    step("building ds4", || {
        process::logged(
            Command::new(cargo)
                .args(["build", "--package", "ds4-cli", "--bin", "ds4"])
                .current_dir(repository::root()),
            &log,
        )
    })?;
    Ok(repository::target().join("debug/ds4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickstart_gives_the_arguments_of_its_manifest() -> Result<()> {
        let deployment = manifest()?;
        let arguments = serve_arguments(&deployment).join(" ");
        assert!(arguments.contains("--prefill-chunk 64"), "{arguments}");
        assert!(arguments.contains("--min-prompt-tokens 64"), "{arguments}");
        Ok(())
    }
}
