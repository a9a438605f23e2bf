//! Examples and dashboards say only what the types and the programs know.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ds4_api::DS4Deployment;
use ds4_telemetry::metrics::{DecisionLabel, Metrics, ReasonLabel};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn yaml_files(folder: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(folder))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Fields of `given` that `kept` does not have.
fn lost(given: &Value, kept: &Value, path: &str) -> Vec<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            let each = given.iter().flat_map(|(key, value)| {
                let path = format!("{path}.{key}");
                kept.get(key)
                    .map_or_else(|| vec![path.clone()], |kept| lost(value, kept, &path))
            });
            each.collect()
        }
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .flat_map(|(given, kept)| lost(given, kept, path))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_field_of_the_examples_is_one_of_the_resource() -> Result<()> {
    let mut deployments = 0;
    for path in yaml_files("examples")? {
        let named = || path.display().to_string();
        let given: Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?).with_context(named)?;
        if given["kind"] != "DS4Deployment" {
            continue;
        }
        let parsed: DS4Deployment = serde_json::from_value(given.clone()).with_context(named)?;
        let lost = lost(&given, &serde_json::to_value(parsed)?, "");
        ensure!(
            lost.is_empty(),
            "{}: the resource has no {}",
            path.display(),
            lost.join(", ")
        );
        deployments += 1;
    }
    ensure!(deployments >= 3, "only {deployments} examples were found");
    Ok(())
}

/// Names of our metrics in a text, with the endings that histograms have in queries.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !word(c))
        .filter(|name| name.starts_with("ds4_"))
        .map(str::to_owned)
        .collect()
}

/// Every series that a program exports: its samples, and the bucket, sum and count of histograms.
fn exported() -> BTreeSet<String> {
    let metrics = Metrics::global();
    // A family shows once it has a member.
    let (decision, reason) = (String::new(), String::new());
    drop(metrics.requests.get_or_create(&DecisionLabel { decision }));
    drop(metrics.handoff_failures.get_or_create(&ReasonLabel { reason }));
    let text = metrics.render();
    let mut all = names(&text);
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let Some((name, kind)) = line.split_once(' ') else {
            continue;
        };
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        all.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        if kind != "gauge" {
            // The bare name of a counter or histogram is no series.
            all.remove(name);
        }
    }
    all
}

#[test]
fn dashboard_rules_and_autoscalers_ask_for_series_that_exist() -> Result<()> {
    let mut known = exported();
    // The operator's own test holds these to what it renders.
    known.extend(names(include_str!("../../operator/controller/src/metrics.rs")));
    for path in [
        "charts/ds4/dashboards/ds4.json",
        "charts/ds4/rules/ds4.yaml",
        "examples/hpa.yaml",
        "examples/keda.yaml",
    ] {
        let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        let asked = names(&text);
        ensure!(!asked.is_empty(), "{path} asks for nothing");
        // The reason label's metric is named in a description; every other name stands in a query.
        let unknown: Vec<&String> = asked.difference(&known).collect();
        ensure!(
            unknown.is_empty(),
            "{path}: no program exports {unknown:?}; known are {known:?}"
        );
    }
    Ok(())
}

#[test]
fn the_dashboard_is_whole() -> Result<()> {
    let text = std::fs::read_to_string(root().join("charts/ds4/dashboards/ds4.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().context("a title")?;
        let number = |key: &str| {
            panel["gridPos"][key]
                .as_u64()
                .with_context(|| format!("{title}: {key}"))
        };
        let (x, y, width, height) = (number("x")?, number("y")?, number("w")?, number("h")?);
        ensure!(x + width <= 24, "{title} leaves the grid");
        for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            ensure!(taken.insert(cell), "{title} covers another panel at {cell:?}");
        }
        for target in panel["targets"].as_array().context("targets")? {
            let query = target["expr"].as_str().context("a query")?;
            let balanced = |open, close| query.matches(open).count() == query.matches(close).count();
            ensure!(
                balanced('(', ')') && balanced('{', '}') && query.contains("$namespace"),
                "{title}: {query}"
            );
        }
    }
    ensure!(panels.len() >= 10, "{} panels", panels.len());
    Ok(())
}
