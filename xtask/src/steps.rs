//! The steps of `cargo xtask test`.

use std::io::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// One step: its name and the cargo arguments.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Extra `RUSTDOCFLAGS`, so that a broken link in the documentation is an error.
    rustdoc_flags: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        arguments: &["fmt", "--all", "--check"],
        rustdoc_flags: "",
    },
    Step {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        rustdoc_flags: "",
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps"],
        rustdoc_flags: "-D warnings",
    },
    Step {
        name: "crds",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "crds", "--check"],
        rustdoc_flags: "",
    },
    Step {
        name: "build",
        arguments: &["build", "--workspace"],
        rustdoc_flags: "",
    },
    Step {
        name: "test",
        arguments: &["test", "--workspace", "--no-fail-fast"],
        rustdoc_flags: "",
    },
    Step {
        name: "formats",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "formats"],
        rustdoc_flags: "",
    },
    Step {
        name: "sanitize",
        arguments: &[
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--",
            "sanitize",
            "--short",
        ],
        rustdoc_flags: "",
    },
    Step {
        name: "fatbin",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "fatbin"],
        rustdoc_flags: "",
    },
    Step {
        name: "containers",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "containers"],
        rustdoc_flags: "",
    },
    Step {
        name: "darwin",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "darwin"],
        rustdoc_flags: "",
    },
    Step {
        name: "neon",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "neon"],
        rustdoc_flags: "",
    },
    Step {
        name: "sdk",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "sdk"],
        rustdoc_flags: "",
    },
    Step {
        name: "page",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "page"],
        rustdoc_flags: "",
    },
    Step {
        name: "soak",
        arguments: &[
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--",
            "soak",
            "--seconds",
            "25",
            "--prompts",
            "32",
        ],
        rustdoc_flags: "",
    },
    Step {
        name: "journey",
        arguments: &["run", "--quiet", "--package", "xtask", "--", "journey"],
        rustdoc_flags: "",
    },
];

/// Prints the steps.
///
/// # Errors
/// When standard output is closed.
pub fn print() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for step in STEPS {
        writeln!(out, "{:10} cargo {}", step.name, step.arguments.join(" "))?;
    }
    Ok(())
}

/// The step that everything after it needs; once it is done, a failure no longer ends the run, so that one run shows all failures.
const FOUNDATION: &str = "build";

/// Runs all steps but those of `skip`. A failure up to the build ends the run; later ones are gathered.
///
/// # Errors
/// With the names of the steps that failed.
pub fn run(skip: &[String]) -> Result<()> {
    if let Some(unknown) = skip
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != name.as_str()))
    {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!(
            "--skip {unknown}: no such step; the steps are {}",
            names.join(", ")
        );
    }
    let (mut failed, mut built) = (Vec::new(), false);
    for step in STEPS
        .iter()
        .filter(|step| !skip.iter().any(|name| name == step.name))
    {
        let start = Instant::now();
        eprintln!("== {} ==", step.name);
        let mut command = Command::new(env!("CARGO"));
        command
            .args(step.arguments)
            .env("RUSTDOCFLAGS", step.rustdoc_flags);
        let status = command
            .status()
            .with_context(|| format!("starting cargo for the step {}", step.name))?;
        let verdict = if status.success() { "" } else { "FAILED after " };
        eprintln!(
            "== {}: {verdict}{:.0} s ==",
            step.name,
            start.elapsed().as_secs_f64()
        );
        built |= step.name == FOUNDATION;
        if !status.success() {
            failed.push(step.name);
            if !built {
                break;
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
