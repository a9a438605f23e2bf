//! `cargo xtask sdk`: the official clients of OpenAI and Anthropic, and a conformance tool, against a real server.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, found};
use crate::progress::{Probe, step, wait};
use crate::repository;

/// What the checks ask for; the model is random and small.
const MODEL: &str = "micro";

/// Tokens of prompt and answer: room for what the clients ask.
const CONTEXT: u32 = 4096;
/// So few that requests made at random, many without a limit of their own, come to an end.
const SHORT_CONTEXT: u32 = 192;

/// Everything; the servers end with it.
///
/// # Errors
/// When a client finds something that it does not expect.
pub fn run() -> Result<()> {
    let folder = repository::cache().join("sdk");
    std::fs::create_dir_all(&folder)?;
    for program in ["npm", "python3"] {
        ensure!(
            found(program),
            "{program} is missing: install it (Debian: nodejs npm python3-venv), or `cargo xtask test --skip sdk`"
        );
    }
    let server = Server::start(&folder, CONTEXT)?;
    let script = node(&folder)?;
    let mut command = server.environment(Command::new("node"));
    check("OpenAI's and Anthropic's Node clients", command.arg(script))?;
    let python = python(&folder)?;
    let mut command = server.environment(Command::new(&python));
    check(
        "OpenAI's and Anthropic's Python clients",
        command.arg(self::script("check.py")),
    )?;
    let mut command = server.environment(Command::new(&python));
    check(
        "every answer is of the types that OpenAI and Anthropic publish",
        command.arg(self::script("conformance.py")),
    )?;
    let short = Server::start(&folder, SHORT_CONTEXT)?;
    check(
        "schemathesis on the published description",
        &mut schemathesis(&python, &short),
    )
}

fn script(name: &str) -> PathBuf {
    repository::root().join("tests/sdk").join(name)
}

fn check(name: &str, command: &mut Command) -> Result<()> {
    step(name, || process::output(command).map(drop))
}

/// The clients in an environment of their own, kept between runs.
fn python(folder: &Path) -> Result<PathBuf> {
    let (environment, wanted) = (folder.join("venv"), script("requirements.txt"));
    let python = environment.join("bin/python");
    if kept(&environment, &wanted)? {
        return Ok(python);
    }
    step("the Python clients are installed", || {
        process::output(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        process::output(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--requirement"])
                .arg(&wanted),
        )
    })?;
    keep(&environment, &wanted)?;
    Ok(python)
}

fn node(folder: &Path) -> Result<PathBuf> {
    let (environment, wanted) = (folder.join("node"), script("package.json"));
    let copy = environment.join("check.mjs");
    std::fs::create_dir_all(&environment)?;
    std::fs::copy(script("check.mjs"), &copy)?;
    if !kept(&environment, &wanted)? {
        std::fs::copy(&wanted, environment.join("package.json"))?;
        step("the Node clients are installed", || {
            process::output(
                Command::new("npm")
                    .args(["install", "--silent", "--no-fund", "--no-audit"])
                    .current_dir(&environment),
            )
        })?;
        keep(&environment, &wanted)?;
    }
    Ok(copy)
}

/// Whether an environment was made from what is wanted now.
fn kept(environment: &Path, wanted: &Path) -> Result<bool> {
    let made = std::fs::read(environment.join("made-from")).unwrap_or_default();
    Ok(made == std::fs::read(wanted)?)
}

fn keep(environment: &Path, wanted: &Path) -> Result<()> {
    std::fs::copy(wanted, environment.join("made-from"))?;
    Ok(())
}

/// Requests that the description allows, and others: no answer may be one that it does not describe.
fn schemathesis(python: &Path, server: &Server) -> Command {
    let mut command = Command::new(python.with_file_name("schemathesis"));
    // It leaves a folder of its own where it runs.
    command.current_dir(repository::cache().join("sdk"));
    command.arg("run").arg(format!("{}/openapi.json", server.url));
    command.args([
        "--header",
        "Authorization: Bearer key",
        "--max-examples",
        "40",
        "--seed",
        "1",
        "--no-color",
        "--request-timeout",
        "120",
    ]);
    command.args([
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]);
    command.args([
        "--phases",
        "examples,coverage,fuzzing",
        "--generation-database",
        "none",
    ]);
    command
}

/// A server of a random model.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path, context: u32) -> Result<Self> {
        let program = repository::target().join("debug/ds4");
        if !program.exists() {
            bail!("{}: not built; `cargo build --bin ds4` first", program.display());
        }
        let (model, keys) = (folder.join("micro.gguf"), folder.join("keys"));
        process::output(
            Command::new(&program)
                .args(["synth", "--preset", "micro", "--out"])
                .arg(&model),
        )?;
        std::fs::write(&keys, "key\n")?;
        let log = std::fs::File::create(folder.join("serve.log"))?;
        let mut process = Command::new(&program)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--model-name",
                MODEL,
                "--max-context",
                &context.to_string(),
                "--model",
            ])
            .arg(&model)
            .arg("--api-keys-file")
            .arg(&keys)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("the server's output")?).lines();
        let address = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        let server = Self {
            url: format!(
                "http://{}",
                address.context("the server ended; see .cache/sdk/serve.log")?
            ),
            process,
        };
        std::thread::spawn(move || lines.for_each(drop));
        server.ready()?;
        Ok(server)
    }

    fn ready(&self) -> Result<()> {
        wait("the server is ready", Duration::from_secs(60), || {
            let health = Command::new("curl")
                .args(["-sf", &format!("{}/readyz", self.url)])
                .output()?;
            Ok(if health.status.success() {
                Probe::Ready(())
            } else {
                Probe::Waiting("loading".into())
            })
        })
    }

    fn environment(&self, mut command: Command) -> Command {
        command.env("DS4_URL", &self.url).env("DS4_MODEL_NAME", MODEL);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
