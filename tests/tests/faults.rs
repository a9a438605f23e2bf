//! Real stage processes: one killed, one stopped, in the middle of a prompt. The answer comes all the same and says what happened.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ds4_tests::{ds4, run_ds4, synth, tokens, write_tokens};
use serde_json::Value;

const PROMPT: usize = 7000;
/// Room for the prompt: the preset's own context is 4096.
const CONTEXT: &[&str] = &["ctx=8192"];

/// A `ds4 stage` process; ended by its own pid.
struct Stage {
    child: Child,
    address: String,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Stopped processes end by SIGKILL too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stage(model: &str, layers: &str) -> Result<Stage> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let child = Command::new(ds4()?)
        .args([
            "stage", "--model", model, "--layers", layers, "--listen", &address,
        ])
        .args(["--threads", "1"])
        .stderr(Stdio::null())
        .spawn()
        .context("starting ds4 stage")?;
    let started = Instant::now();
    let stage = Stage { child, address };
    while std::net::TcpStream::connect(&stage.address).is_err() {
        ensure!(
            started.elapsed() < Duration::from_secs(30),
            "the stage does not listen"
        );
        sleep(Duration::from_millis(20));
    }
    Ok(stage)
}

fn signal(stage: &Stage, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .args([name, &stage.child.id().to_string()])
        .status()?;
    ensure!(status.success(), "kill {name}");
    Ok(())
}

/// Time that a process has had on a core: what it has worked, however busy the machine is.
fn worked(stage: &Stage) -> Result<Duration> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", stage.child.id()))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text
            .split(' ')
            .next()
            .and_then(|nanos| nanos.parse().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// One prompt over two stages; the first gets the signal in the middle of it.
fn struck(name: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let model = synth(folder.path(), "micro", 7, CONTEXT)?.display().to_string();
    let (prompt, out) = (folder.path().join("prompt.json"), folder.path().join("out.json"));
    write_tokens(&prompt, &tokens(PROMPT, 280, 1234))?;
    let common = |out: &std::path::Path| -> Vec<String> {
        let text = format!(
            "run --json --ignore-eos --temp 0 --max-tokens 16 --prefill-chunk 32 --model {model} --prompt-tokens {} --tokens-out {}",
            prompt.display(),
            out.display()
        );
        text.split(' ').map(String::from).collect()
    };
    let expected = folder.path().join("expected.json");
    run_ds4(common(&expected))?;

    let stages = [stage(&model, "0:0")?, stage(&model, "1:1")?];
    let addresses = stages.each_ref().map(|stage| stage.address.as_str()).join(",");
    let mut arguments = common(&out);
    arguments.extend(
        [
            "--layers", "2:output", "--stages", &addresses, "--policy", "always",
        ]
        .map(String::from),
    );
    arguments.extend(["--handoff-timeout", "3s"].map(String::from));
    let mut run = Command::new(ds4()?)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(run.stderr.take().context("stderr")?).lines();
    for line in lines.by_ref() {
        if line?.contains("Complete") {
            break;
        }
    }
    // In the middle of the prompt by the stage's own work; the decision below fails the test when it is not.
    let (before, waited) = (worked(&stages[0])?, Instant::now());
    while worked(&stages[0])?.saturating_sub(before) < Duration::from_millis(40) {
        ensure!(
            waited.elapsed() < Duration::from_secs(60),
            "the stage does not work"
        );
        sleep(Duration::from_millis(1));
    }
    signal(&stages[0], name)?;
    let drained = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let output = run.wait_with_output()?;
    let said = drained.join().unwrap_or_default();
    ensure!(output.status.success(), "{name}: {said:?}");
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    let decision = summary["decision"].as_str().unwrap_or_default();
    ensure!(
        decision.starts_with(&format!(
            "recomputed; reason=stage {}: not reachable",
            stages[0].address
        )),
        "{name}: {decision}"
    );
    ensure!(
        std::fs::read(&out)? == std::fs::read(&expected)?,
        "{name}: other tokens"
    );
    Ok(())
}

#[test]
fn a_killed_stage_is_named_and_the_answer_is_the_same() -> Result<()> {
    struck("-KILL")
}

#[test]
fn a_stopped_stage_is_named_after_the_deadline_and_the_answer_is_the_same() -> Result<()> {
    struck("-STOP")
}
