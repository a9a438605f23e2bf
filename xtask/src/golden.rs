//! `cargo xtask chart`: what the chart renders to, kept in files beside the values that lead there, so that a change of the chart shows
//! as a change of objects.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::repository;
use crate::tools;

/// Pairs of `NAME.values.yaml` and `NAME.yaml`.
const FOLDER: &str = "charts/golden";

/// Renders every set of values; writes the files, or with `check` says where they differ. Returns how many there are.
///
/// # Errors
/// When helm fails, or a file is not what the chart renders.
pub fn run(check: bool) -> Result<usize> {
    let sets = sets()?;
    for values in &sets {
        let rendered = render(values)?;
        let file = golden(values);
        if !check {
            std::fs::write(&file, rendered).with_context(|| file.display().to_string())?;
            eprintln!("wrote {}", file.display());
            continue;
        }
        let kept = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        if let Some(differs) = difference(&kept, &rendered) {
            bail!(
                "{}:{differs}: run `cargo xtask chart` and look at what changed",
                file.display()
            );
        }
    }
    Ok(sets.len())
}

fn sets() -> Result<Vec<PathBuf>> {
    let mut sets = Vec::new();
    for entry in std::fs::read_dir(repository::root().join(FOLDER)).context(FOLDER)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".values.yaml") {
            sets.push(path);
        }
    }
    sets.sort();
    ensure!(!sets.is_empty(), "{FOLDER}: no NAME.values.yaml");
    Ok(sets)
}

fn golden(values: &Path) -> PathBuf {
    PathBuf::from(values.to_string_lossy().replace(".values.yaml", ".yaml"))
}

/// Without the definition, which has a check of its own (`cargo xtask crds --check`).
fn render(values: &Path) -> Result<String> {
    let helm = tools::KUBE.build()?.join("helm");
    process::output(
        Command::new(helm)
            .args([
                "template",
                "ds4",
                "charts/ds4",
                "--namespace",
                "ds4-system",
                "--set",
                "crds.install=false",
                "--values",
            ])
            .arg(values)
            .current_dir(repository::root()),
    )
}

/// The first line that is another one.
fn difference(kept: &str, rendered: &str) -> Option<String> {
    let (mut kept, mut rendered) = (kept.lines(), rendered.lines());
    for number in 1.. {
        match (kept.next(), rendered.next()) {
            (None, None) => return None,
            (kept, rendered) if kept == rendered => {}
            (kept, rendered) => {
                let line =
                    |line: Option<&str>| line.map_or_else(|| "the end".into(), |line| format!("{line:?}"));
                return Some(format!(
                    "{number}: kept {}, rendered {}",
                    line(kept),
                    line(rendered)
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(
            difference("a\nb\n", "a\nc\n").as_deref(),
            Some("2: kept \"b\", rendered \"c\"")
        );
        assert_eq!(
            difference("a\n", "a\nb\n").as_deref(),
            Some("2: kept the end, rendered \"b\"")
        );
    }
}
