//! Stages as processes on this machine, for `ds4 run --stages 0:1,2:output` and `ds4 logits --stages`.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ds4_gguf::LayerSpan;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::args::ComputeArguments;

/// How long a stage may take to load.
const START: Duration = Duration::from_secs(600);
/// What a stage prints before its address.
pub(crate) const LISTENING: &str = "listening on ";

/// Running stages; they end when this is dropped, and when this process ends in any way, since their standard input closes then.
pub(crate) struct LocalStages {
    pub(crate) addresses: Vec<String>,
    pub(crate) own: LayerSpan,
    _children: Vec<Child>,
}

/// Whether texts are layer ranges rather than addresses.
pub(crate) fn are_ranges(stages: &[String]) -> bool {
    stages.last().is_some_and(|last| last.ends_with(":output"))
}

/// Starts one process for every range but the last, and waits until all listen.
pub(crate) async fn start(
    ranges: &[String],
    n_layer: usize,
    compute: &ComputeArguments,
) -> Result<LocalStages> {
    let spans = ranges
        .iter()
        .map(|range| LayerSpan::parse(range, n_layer))
        .collect::<Result<Vec<_>, _>>()?;
    let Some((own, stages)) = spans.split_last() else {
        bail!("stages: expected at least one range, found none")
    };
    check(&spans)?;
    let mut addresses = Vec::new();
    let mut children = Vec::new();
    for span in stages {
        children.push(spawn(*span, compute)?);
    }
    for (child, span) in children.iter_mut().zip(stages) {
        addresses.push(address(child, *span).await?);
    }
    Ok(LocalStages {
        addresses,
        own: *own,
        _children: children,
    })
}

/// Every layer once, in order, and the head at the end.
fn check(spans: &[LayerSpan]) -> Result<()> {
    let mut expected = 0;
    for span in spans {
        ensure!(
            span.first == expected,
            "stages: expected a range that starts at layer {expected}, found {span}"
        );
        expected = span.last + 1;
    }
    ensure!(
        spans.last().is_some_and(|span| span.head),
        "stages: expected the last range to end in :output"
    );
    Ok(())
}

fn spawn(span: LayerSpan, compute: &ComputeArguments) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
    command
        .args([
            "stage",
            "--listen",
            "127.0.0.1:0",
            "--until-stdin-closes",
            "--layers",
        ])
        .arg(span.to_string());
    command
        .arg("--model")
        .arg(&compute.model)
        .arg("--numerics")
        .arg(compute.numerics.to_string())
        .args(["--cuda-device", &compute.cuda_device.to_string()])
        .args(["--cuda-graph", compute.cuda_graph.name()])
        .args(["--backend", compute.backend.name()]);
    if let Some(threads) = compute.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "warn");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().context("starting a stage")
}

async fn address(child: &mut Child, span: LayerSpan) -> Result<String> {
    let stdout = child.stdout.take().context("a stage's standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(START, lines.next_line()).await;
    let line = line.with_context(|| format!("stage {span}: did not listen within {START:?}"))??;
    let line = line.with_context(|| format!("stage {span}: ended before it listened"))?;
    let address = line
        .strip_prefix(LISTENING)
        .with_context(|| format!("stage {span}: expected its address, found {line:?}"))?;
    Ok(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(ranges: &[&str]) -> Result<()> {
        let spans: Vec<LayerSpan> = ranges
            .iter()
            .map(|range| LayerSpan::parse(range, 7).expect("a range"))
            .collect();
        check(&spans)
    }

    #[test]
    fn ranges_must_tile_the_model() {
        assert!(checked(&["0:1", "2:4", "5:output"]).is_ok());
        assert!(
            checked(&["0:1", "3:output"])
                .expect_err("a gap")
                .to_string()
                .contains("starts at layer 2, found 3:output")
        );
        assert!(checked(&["0:2", "2:output"]).is_err());
        assert!(
            checked(&["0:6"])
                .expect_err("no head")
                .to_string()
                .contains(":output")
        );
        assert!(are_ranges(&["0:1".into(), "2:output".into()]) && !are_ranges(&["host:7400".into()]));
    }
}
