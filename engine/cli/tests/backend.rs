//! `--backend` as a user meets it: the program with and without a CUDA driver. The emulated one is found as the real one would be.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn ds4(folder: &Path, driver: bool, arguments: &[&str]) -> Output {
    ds4_with(folder, driver, &[], arguments)
}

/// With variables that make the emulated driver another one.
fn ds4_with(folder: &Path, driver: bool, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4"));
    command.envs(variables.iter().copied());
    command
        .args(arguments)
        .current_dir(folder)
        .env_remove("LD_LIBRARY_PATH");
    if driver {
        command.env("LD_LIBRARY_PATH", ds4_emu::library().parent().unwrap());
    }
    command.output().unwrap()
}

#[test]
fn cuda_needs_a_driver_and_gives_the_bits_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(
        ds4(at, false, &["synth", "--preset", "micro", "--out", "m.gguf"])
            .status
            .success()
    );
    std::fs::write(at.join("t.json"), "[1, 5, 9, 2]").unwrap();
    let logits = |backend: &'static str, driver: bool, out: &'static str, words: &[&str]| {
        let model = [
            "logits",
            "--model",
            "m.gguf",
            "--tokens",
            "t.json",
            "--out",
            out,
            "--backend",
            backend,
        ];
        ds4(at, driver, &[&model, words].concat())
    };
    assert!(logits("cpu", false, "cpu.f32", &[]).status.success());
    // Prefill; then token by token, by graphs and by launches one by one.
    let ways: [&[&str]; 3] = [&[], &["--chunk", "1"], &["--chunk", "1", "--cuda-graph", "off"]];
    for words in ways {
        let found = logits("cuda", true, "cuda.f32", words);
        let said = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success(), "{words:?}: {said}");
        assert!(
            std::fs::read(at.join("cpu.f32")).unwrap() == std::fs::read(at.join("cuda.f32")).unwrap(),
            "{words:?}"
        );
    }
    if !Path::new("/dev/nvidiactl").exists() {
        let refused = logits("cuda", false, "none.f32", &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("expected libcuda.so, found none"),
            "{said}"
        );
    }
}

#[test]
fn cuda_says_at_start_what_a_driver_refuses_and_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let made = ds4(at, false, &["synth", "--preset", "micro", "--out", "m.gguf"]);
    assert!(made.status.success());
    let run = |variables: &[(&str, &str)], graphs: &str| {
        let words = [
            "--prompt",
            "hi",
            "--max-tokens",
            "2",
            "--backend",
            "cuda",
            "--cuda-graph",
            graphs,
        ];
        let found = ds4_with(
            at,
            true,
            variables,
            &[&["run", "--model", "m.gguf"], &words[..]].concat(),
        );
        let said = String::from_utf8_lossy(&found.stderr);
        (found.status.success(), said.into_owned())
    };
    let lacks = [(ds4_emu::LACKS_VARIABLE, "cuGraphInstantiate")];
    let (passed, said) = run(&lacks, "on");
    assert!(!passed && said.contains("CUDA_ERROR_NOT_SUPPORTED"), "{said}");
    assert!(said.contains("--cuda-graph off decodes without graphs"), "{said}");
    let (passed, said) = run(&lacks, "off");
    assert!(
        passed && said.contains("page-locked memory, beside the reading"),
        "{said}"
    );
    // Enough for the rows of a few tokens, not for the weights.
    let (passed, said) = run(&[(ds4_emu::LOCKABLE_VARIABLE, "262144")], "on");
    assert!(
        passed && said.contains("of page-locked memory were refused"),
        "{said}"
    );
}

#[test]
#[cfg(not(target_os = "macos"))]
fn metal_says_that_it_needs_a_mac() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let made = ds4(at, false, &["synth", "--preset", "micro", "--out", "m.gguf"]);
    assert!(made.status.success());
    std::fs::write(at.join("t.json"), "[1, 5]").unwrap();
    let refused = ds4(
        at,
        false,
        &[
            "logits",
            "--model",
            "m.gguf",
            "--tokens",
            "t.json",
            "--out",
            "l.f32",
            "--backend",
            "metal",
        ],
    );
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success()
            && said.contains("--backend metal: Metal: expected macOS on Apple silicon, found linux"),
        "{said}"
    );
    assert!(!at.join("l.f32").exists(), "nothing was computed elsewhere");
}
