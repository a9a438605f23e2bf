//! `ds4 fetch` as a process: killed in the middle, started again, and what the engine does with a part of a model.

#[path = "../../engine/fetch/tests/it/server.rs"]
#[allow(dead_code, missing_docs)]
mod server;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ds4_tests::{ds4, ds4_output, run_ds4, synth};
use serde_json::Value;
use server::{Rules, Server};

fn arguments(url: &str, folder: &Path, layers: &str) -> Vec<String> {
    let folder = folder.display().to_string();
    [
        "fetch",
        url,
        "--out",
        &folder,
        "--layers",
        layers,
        "--parallel",
        "2",
    ]
    .map(String::from)
    .into()
}

fn recorded(folder: &Path) -> usize {
    let text = std::fs::read_to_string(folder.join("model.gguf.partial.pieces")).unwrap_or_default();
    text.lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_fetch_goes_on_where_it_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bytes = std::fs::read(synth(folder.path(), "tiny", 3, &[])?)?;
    let rules = Rules {
        pace: Some(Duration::from_millis(5)),
        ..Rules::default()
    };
    let server = Server::start(bytes.clone(), rules, &[]).await;
    let cache = folder.path().join("cache");
    let mut process = Command::new(ds4()?)
        .args(arguments(&server.url(), &cache, "0:output"))
        .stderr(Stdio::null())
        .spawn()?;
    let limit = Instant::now() + Duration::from_secs(60);
    while recorded(&cache) < 60 {
        ensure!(
            Instant::now() < limit && process.try_wait()?.is_none(),
            "it ended or stood before it could be killed"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    process.kill()?; // SIGKILL
    process.wait()?;
    ensure!(!cache.join("model.gguf").exists(), "a part was published");
    let before = server.sent();
    let status = folder.path().join("status");
    let mut again = arguments(&server.url(), &cache, "0:output");
    again.extend(["--status-file".to_owned(), status.display().to_string()]);
    run_ds4(again)?;
    ensure!(std::fs::read(cache.join("model.gguf"))? == bytes, "other bytes");
    let again = server.sent() - before;
    ensure!(
        again < bytes.len() as u64,
        "fetched from the start: {again} of {}",
        bytes.len()
    );
    let status: Value = serde_json::from_slice(&std::fs::read(status)?)?;
    ensure!(
        status["phase"] == "done" && status["loadedBytes"] == status["totalBytes"],
        "{status}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_served_while_it_runs_and_a_failure_stands_in_the_status_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bytes = std::fs::read(synth(folder.path(), "micro", 3, &[])?)?;
    let rules = Rules {
        pace: Some(Duration::from_millis(40)),
        ..Rules::default()
    };
    let server = Server::start(bytes, rules, &[]).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut slow = arguments(&server.url(), &folder.path().join("cache"), "0:output");
    slow.extend(["--listen".to_owned(), port.to_string()]);
    let mut process = Command::new(ds4()?)
        .args(slow)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let seen = watch(&port.to_string(), &mut process).await;
    process.kill()?;
    process.wait()?;
    seen?;
    let status = folder.path().join("status");
    let mut wrong = arguments(
        &server.url().replace("model.gguf", "none.gguf"),
        &folder.path().join("other"),
        "0:0",
    );
    wrong.extend(["--status-file".to_owned(), status.display().to_string()]);
    ensure!(!ds4_output(wrong)?.status.success(), "a missing file was fetched");
    let status: Value = serde_json::from_slice(&std::fs::read(status)?)?;
    ensure!(
        status["phase"] == "failed"
            && status["error"]
                .as_str()
                .is_some_and(|error| error.contains("404")),
        "{status}"
    );
    Ok(())
}

/// Waits for a state between nothing and everything.
async fn watch(address: &str, process: &mut std::process::Child) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        ensure!(
            Instant::now() < limit && process.try_wait()?.is_none(),
            "no progress was seen"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Ok(text) = get(address, "/progress").await else {
            continue;
        };
        let state: Value = serde_json::from_str(text.rsplit("\r\n\r\n").next().context("a body")?)?;
        let (loaded, total) = (
            state["loadedBytes"].as_u64().unwrap_or(0),
            state["totalBytes"].as_u64().unwrap_or(0),
        );
        if loaded > 0 && loaded < total {
            let metrics = get(address, "/metrics").await?;
            ensure!(
                metrics.contains("ds4_fetch_loaded_bytes") && metrics.contains("ds4_fetch_total_bytes"),
                "{metrics}"
            );
            return Ok(());
        }
    }
}

async fn get(address: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_starts_from_its_part_and_refuses_layers_that_are_not_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bytes = std::fs::read(synth(folder.path(), "micro", 3, &[])?)?;
    let server = Server::start(bytes, Rules::default(), &[]).await;
    run_ds4(arguments(&server.url(), folder.path(), "1:1"))?;
    let model = folder.path().join("model.gguf").display().to_string();
    let stage = |layers: &str| {
        Command::new(ds4().unwrap_or_default())
            .args([
                "stage",
                "--model",
                &model,
                "--layers",
                layers,
                "--listen",
                "127.0.0.1:0",
                "--until-stdin-closes",
            ])
            .stdin(Stdio::null())
            .output()
    };
    let own = stage("1:1")?;
    ensure!(
        own.status.success() && String::from_utf8_lossy(&own.stdout).contains("listening on"),
        "{own:?}"
    );
    let other = stage("0:1")?;
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(
        !other.status.success() && text.contains("layers 0:1") && text.contains("ds4 fetch"),
        "{text}"
    );
    Ok(())
}
