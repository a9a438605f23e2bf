//! The runtime's example `pods`: real stages and engines as processes, measured by themselves.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::link::Link;
use super::machine::{self, Cpus};
use super::report::Report;
use crate::{released, repository};

/// The program, built with optimisation, and the two processors it runs on.
pub struct Pods {
    program: PathBuf,
    cpus: Cpus,
}

impl Pods {
    /// Builds it. The output pod has the first of two processors, a stage the second.
    ///
    /// # Errors
    /// When it does not compile, or there is one processor only.
    pub fn build() -> Result<Self> {
        let example = ["--package", "ds4-runtime", "--example", "pods"];
        Ok(Self {
            program: released::program("pods", &example, "examples/pods")?,
            cpus: Cpus::first(2)?,
        })
    }

    /// What `pods WHAT` prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure<T: DeserializeOwned>(&self, what: &str, arguments: &[(&str, String)]) -> Result<T> {
        self.measure_over(None, what, arguments)
    }

    /// The same with both pods on a slower link.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure_over<T: DeserializeOwned>(
        &self,
        link: Option<&Link>,
        what: &str,
        arguments: &[(&str, String)],
    ) -> Result<T> {
        let (first, second) = (self.cpus.0[0].to_string(), self.cpus.0[1].to_string());
        let words = link.map_or_else(Vec::new, |link| link.prefix().to_vec());
        let words = [words, vec!["taskset", "-c", &first]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.program).arg(what);
        command.args(["--stage-cpu", &second]);
        for (name, value) in arguments {
            command.args([&format!("--{name}"), value]);
        }
        let run = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| "starting taskset (of util-linux)")?;
        ensure!(run.status.success(), "pods {what} ended with {}", run.status);
        let text = String::from_utf8_lossy(&run.stdout);
        serde_json::from_str(&text).with_context(|| format!("what pods {what} printed:\n{text}"))
    }
}

/// A model's file, made by the example unless it is there.
///
/// # Errors
/// When its folder cannot be made.
pub fn model(name: &str) -> Result<String> {
    let file = repository::cache().join("bench/models").join(name);
    std::fs::create_dir_all(file.parent().context("a folder")?)?;
    Ok(file.to_string_lossy().into_owned())
}

/// What a report says of the machine.
#[must_use]
pub fn setting() -> Vec<(String, String)> {
    let load = machine::load().map_or("unknown".into(), |load| {
        format!("{load:.1} processes wanted to run")
    });
    vec![
        ("processor".into(), machine::processor()),
        (
            "processors".into(),
            "output pod on one, stage on another, one thread each for the model".into(),
        ),
        ("load before".into(), load),
    ]
}

/// Prints the report and writes it beside the others.
///
/// # Errors
/// When it cannot be written.
pub fn write(name: &str, report: &Report, json: Option<&std::path::Path>) -> Result<()> {
    let folder = repository::cache().join("bench").join(name);
    std::fs::create_dir_all(&folder)?;
    let (text, object) = (report.markdown(), serde_json::to_string_pretty(report)?);
    std::fs::write(folder.join("report.md"), &text)?;
    std::fs::write(folder.join("report.json"), &object)?;
    if let Some(json) = json {
        std::fs::write(json, &object)?;
    }
    eprintln!("{text}\nthe report lies in {}", folder.display());
    Ok(())
}
