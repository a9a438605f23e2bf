//! Real servers and stages on the emulated CUDA driver, found as a real one would be: one that breaks, and routes of two back ends.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A frozen or busy machine may take as long for what takes a second.
const PATIENCE: Duration = Duration::from_secs(120);
/// Layers of the micro preset: 0, 1 and 2 with the head.
const STAGE: &str = "0:1";
const OUTPUT: &str = "2:output";
const NAME: &str = "micro";

struct Process {
    child: Child,
    address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// `ds4` with these words, once it says where it listens.
    fn start(backend: &str, environment: &[(&str, &str)], words: &[&str]) -> Self {
        let driver = ds4_emu::library().parent().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ds4"))
            .args(words)
            .args(["--backend", backend, "--threads", "1", "--listen", "127.0.0.1:0"])
            .env("LD_LIBRARY_PATH", driver)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut said).unwrap();
        let address = said.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        Self { child, address }
    }

    fn serve(backend: &str, environment: &[(&str, &str)], model: &Path, words: &[&str]) -> Self {
        let words = [
            &["serve", "--model-name", NAME, "--model", model.to_str().unwrap()],
            words,
        ]
        .concat();
        let server = Self::start(backend, environment, &words);
        let started = Instant::now();
        while server.ask("GET", "/readyz", "").0 != 200 {
            assert!(
                started.elapsed() < PATIENCE,
                "{}",
                server.ask("GET", "/readyz", "").1
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn stage(backend: &str, environment: &[(&str, &str)], model: &Path) -> Self {
        let words = ["stage", "--layers", STAGE, "--model", model.to_str().unwrap()];
        Self::start(backend, environment, &words)
    }

    /// The status, and the head and body of an answer; nothing when nobody listens.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let length = body.len();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: ds4\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            let _ = stream.write_all((head + body).as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), answer)
    }

    fn complete(&self, prompt: &str, tokens: u32) -> (u16, String) {
        let body =
            json!({"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5});
        self.ask("POST", "/v1/completions", &body.to_string())
    }

    /// How it ended by itself, and what it said.
    fn end(mut self) -> (ExitStatus, String) {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.child.wait().unwrap(), said)
    }
}

fn model(folder: &Path) -> PathBuf {
    let path = folder.join("m.gguf");
    let made = Command::new(env!("CARGO_BIN_EXE_ds4"))
        .args(["synth", "--preset", "micro", "--out"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    path
}

#[test]
fn a_device_beyond_repair_fails_the_request_with_its_words_and_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    // Every pass launches the kernel three times: the first request is answered.
    let fault = [(ds4_emu::FAIL_VARIABLE, "attend:12")];
    let server = Process::serve("cuda", &fault, &model(folder.path()), &[]);
    let (status, said) = server.complete("Hello", 2);
    assert_eq!(status, 200, "{said}");
    let (status, said) = server.complete("Hello again", 30);
    assert!(status == 500 && said.contains("attend"), "{said}");
    let (end, said) = server.end();
    assert_eq!(end.code(), Some(1), "{said}");
    assert!(
        said.contains("the device failed") && said.contains("attend"),
        "{said}"
    );
}

#[test]
fn a_device_without_room_fails_the_request_that_asked_and_serves_the_next() {
    let folder = tempfile::tempdir().unwrap();
    // Less than the scratch of a pass, more than any tensor of the model.
    let fault = [(ds4_emu::FAIL_VARIABLE, "cuMemAlloc:8388608")];
    let server = Process::serve("cuda", &fault, &model(folder.path()), &[]);
    let (status, said) = server.complete("Hello", 2);
    assert!(status == 500 && said.contains("scratch takes"), "{said}");
    assert_eq!(server.ask("GET", "/readyz", "").0, 200, "it serves on");
    let (status, said) = server.complete("Hello", 2);
    assert_eq!(status, 200, "{said}");
}

#[test]
fn a_stage_on_a_device_beyond_repair_ends_and_the_prompt_is_recomputed() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let stage = Process::stage("cuda", &[(ds4_emu::FAIL_VARIABLE, "attend:1")], &model);
    let route = [
        "--layers",
        OUTPUT,
        "--policy",
        "always",
        "--stages",
        stage.address.as_str(),
    ];
    let server = Process::serve("cpu", &[], &model, &route);
    let (status, said) = server.complete("Hello", 2);
    assert!(
        status == 200 && said.contains("x-ds4-disaggregation: recomputed"),
        "{said}"
    );
    let (end, said) = stage.end();
    assert!(end.code() == Some(1) && said.contains("attend"), "{end} {said}");
}

/// Text and logarithms of probabilities of an answer over a route of two processes, or alone.
fn answer(model: &Path, stage: Option<&str>, output: &str) -> (String, Vec<f64>) {
    let stage = stage.map(|backend| Process::stage(backend, &[], model));
    let mut words = Vec::new();
    if let Some(stage) = &stage {
        words.extend([
            "--layers",
            OUTPUT,
            "--policy",
            "always",
            "--on-failure",
            "fail",
            "--stages",
        ]);
        words.push(stage.address.as_str());
    }
    let server = Process::serve(output, &[], model, &words);
    let (status, said) = server.complete(&"Hello world ".repeat(8), 6);
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        said.contains("x-ds4-disaggregation: disaggregated"),
        stage.is_some(),
        "{said}"
    );
    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    let choice = &body["choices"][0];
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    let logprobs: Vec<f64> = logprobs.iter().map(|value| value.as_f64().unwrap()).collect();
    (choice["text"].to_string(), logprobs)
}

#[test]
fn routes_of_both_back_ends_answer_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let (text, logprobs) = answer(&model, None, "cpu");
    for (stage, output) in [("cpu", "cuda"), ("cuda", "cpu")] {
        let (found, probabilities) = answer(&model, Some(stage), output);
        let pairs = logprobs.iter().zip(&probabilities);
        let drift = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        eprintln!(
            "{stage} -> {output}: {} tokens, largest drift {drift:e}",
            probabilities.len()
        );
        assert_eq!((found, probabilities.len()), (text.clone(), logprobs.len()));
        assert!(
            drift == 0.0,
            "{stage} -> {output}: the bits are the same: {drift:e}"
        );
    }
}
