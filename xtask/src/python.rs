//! Python environments under `.cache/python`, made once per list of packages.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, found};
use crate::progress::step;
use crate::repository;

/// The Python of the environment `name`, which has exactly the pinned `packages` (as pip names them) and what they need.
///
/// # Errors
/// When Python or its venv module is missing, or pip cannot install a package: then with the end of its log.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = repository::cache().join("python").join(name);
    let (python, stamp) = (folder.join("bin/python"), folder.join("packages"));
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    if !found("python3") {
        bail!("python3 is missing: on Debian, as root: apt-get install python3 python3-venv");
    }
    let log = folder.with_extension("log");
    step(&format!("a Python environment for {name}"), || {
        process::logged(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&folder),
            &log,
        )?;
        if packages.is_empty() {
            return Ok(());
        }
        process::logged(
            Command::new(&python)
                .args(["-m", "pip", "install", "-q"])
                .args(packages),
            &log,
        )
    })?;
    std::fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(python)
}
