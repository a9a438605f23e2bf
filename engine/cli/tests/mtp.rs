//! `--mtp` as a user meets it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn ds4(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4"));
    // An emulated CUDA driver, found as the real one would be.
    command
        .env("LD_LIBRARY_PATH", ds4_emu::library().parent().unwrap())
        .args(line.split(' '))
        .current_dir(folder);
    command.output().unwrap()
}

fn made(folder: &Path, line: &str) -> Value {
    let output = ds4(folder, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn refused(folder: &Path, line: &str) -> String {
    let output = ds4(folder, line);
    assert!(!output.status.success(), "{line}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_draft_head_in_the_models_file_or_beside_it_changes_no_answer_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    made(at, "synth --preset micro --out plain.gguf");
    made(at, "synth --preset micro --mtp --out with.gguf");
    let run = |rest: &str| {
        made(
            at,
            &format!("run --backend cpu --json --ignore-eos -n 24 --temp 0.8 --seed 3 -p hello {rest}"),
        )
    };
    let plain = run("--model plain.gguf");
    assert_eq!(plain["draft_tokens"], 0);
    for with in ["--model with.gguf --mtp", "--model plain.gguf --mtp=with.gguf"] {
        let found = run(with);
        assert_eq!(
            (&found["text"], &found["completion_tokens"]),
            (&plain["text"], &plain["completion_tokens"])
        );
        assert!(found["draft_tokens"].as_u64().unwrap() >= 11, "{found}");
    }
    assert_eq!(
        run("--model with.gguf")["draft_tokens"],
        0,
        "off unless asked for"
    );
    assert!(
        made(at, "inspect with.gguf --json")["draft_head_bytes"]
            .as_u64()
            .unwrap()
            > 100_000
    );
    assert!(made(at, "inspect plain.gguf --json")["draft_head_bytes"].is_null());
    let bench = made(
        at,
        "bench --model with.gguf --mtp --backend cpu --json --prompt 0 -n 8 --depth 0,130",
    );
    let rows = bench["results"].as_array().unwrap();
    let drafts: Vec<_> = rows.iter().filter(|row| row["test"] == "draft").collect();
    assert_eq!(drafts.len(), 2, "{bench}");
    assert!(
        drafts
            .iter()
            .all(|row| row["draft_tokens"].as_u64().unwrap() >= 4)
    );
}

#[test]
fn a_file_without_a_head_and_a_back_end_that_does_not_guess_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    made(at, "synth --preset micro --out plain.gguf");
    made(at, "synth --preset micro --mtp --out with.gguf");
    made(at, "synth --preset micro --mtp --set q_lora=64 --out other.gguf");
    let said = refused(at, "run --model plain.gguf --backend cpu --mtp -p hi");
    assert!(
        said.contains("--mtp: no draft head of this model in that file"),
        "{said}"
    );
    assert!(
        said.contains("tensor mtp.0.enorm.weight: expected it to be present"),
        "{said}"
    );
    let said = refused(at, "run --model plain.gguf --backend cpu --mtp=other.gguf -p hi");
    assert!(
        said.contains("tensor mtp.0.attn_q_a.weight: expected shape [256, 32], found [256, 64]"),
        "{said}"
    );
    let said = refused(at, "run --model plain.gguf --mtp=none.gguf -p hi");
    assert!(said.contains("--mtp none.gguf"), "{said}");
    let said = refused(at, "run --model with.gguf --backend cuda --mtp -p hi");
    assert!(
        said.contains("--mtp: expected --backend cpu, found a device"),
        "{said}"
    );
}
