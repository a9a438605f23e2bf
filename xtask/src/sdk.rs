//! `cargo xtask sdk`: the official clients of OpenAI and Anthropic, and a conformance tool, against a real server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{self, found};
use crate::progress::step;
use crate::repository;
use crate::serving::{MODEL, Server};

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
    for program in ["npm", "python3"] {
        ensure!(
            found(program),
            "{program} is missing: install it (Debian: nodejs npm python3-venv), or `cargo xtask test --skip sdk`"
        );
    }
    let server = server(&folder, CONTEXT)?;
    let script = node(&folder)?;
    let mut command = asking(&server, Command::new("node"));
    check("OpenAI's and Anthropic's Node clients", command.arg(script))?;
    let python = python(&folder)?;
    let mut command = asking(&server, Command::new(&python));
    check(
        "OpenAI's and Anthropic's Python clients",
        command.arg(self::script("check.py")),
    )?;
    let mut command = asking(&server, Command::new(&python));
    check(
        "every answer is of the types that OpenAI and Anthropic publish",
        command.arg(self::script("conformance.py")),
    )?;
    let short = self::server(&folder.join("short"), SHORT_CONTEXT)?;
    check(
        "schemathesis on the published description",
        &mut schemathesis(&python, &short),
    )
}

/// A server that asks for a key.
fn server(folder: &Path, context: u32) -> Result<Server> {
    std::fs::create_dir_all(folder)?;
    let keys = folder.join("keys");
    std::fs::write(&keys, "key\n")?;
    let (context, keys) = (context.to_string(), keys.display().to_string());
    Server::alone(
        folder,
        None,
        &["--max-context", &context, "--api-keys-file", &keys],
    )
}

fn asking(server: &Server, mut command: Command) -> Command {
    command.env("DS4_URL", &server.url).env("DS4_MODEL_NAME", MODEL);
    command
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
