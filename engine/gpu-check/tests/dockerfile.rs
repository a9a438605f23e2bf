//! What `Dockerfile.cuda` says, without a builder of images.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One stage: its base, and its instructions with their words.
struct Stage {
    base: String,
    name: String,
    steps: Vec<(String, String)>,
}

/// The arguments before the first stage, and the stages.
fn parse(text: &str) -> (Vec<String>, Vec<Stage>) {
    let (mut arguments, mut stages) = (Vec::new(), Vec::<Stage>::new());
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (instruction, rest) = line.split_once(' ').unwrap();
        match (instruction, stages.last_mut()) {
            ("FROM", _) => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                stages.push(Stage {
                    base: words[0].to_owned(),
                    name: words.get(2).copied().unwrap_or_default().to_owned(),
                    steps: Vec::new(),
                });
            }
            (_, Some(stage)) => stage.steps.push((instruction.to_owned(), rest.to_owned())),
            ("ARG", None) => arguments.push(rest.to_owned()),
            (other, None) => panic!("{other} before the first FROM"),
        }
    }
    (arguments, stages)
}

fn file() -> (Vec<String>, Vec<Stage>) {
    parse(&std::fs::read_to_string(root().join("Dockerfile.cuda")).unwrap())
}

/// What the last stage copies: from which path of which stage to where.
fn copied(last: &Stage) -> Vec<(String, String, String)> {
    let copies = last.steps.iter().filter(|(instruction, _)| instruction == "COPY");
    let words = copies.map(|(_, rest)| {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let from = words[0].strip_prefix("--from=").expect("files of a stage alone");
        (from.to_owned(), words[1].to_owned(), words[2].to_owned())
    });
    words.collect()
}

#[test]
fn the_image_is_a_slim_base_and_two_programs_and_runs_as_nobody() {
    let (arguments, stages) = file();
    for base in ["CUDA_BASE", "RUST_BASE", "RUNTIME_BASE"] {
        assert!(
            arguments
                .iter()
                .any(|argument| argument.starts_with(&format!("{base}="))),
            "{base}"
        );
        assert!(
            stages.iter().any(|stage| stage.base == format!("${{{base}}}")),
            "{base}"
        );
    }
    let last = stages.last().unwrap();
    assert_eq!(last.base, "${RUNTIME_BASE}");
    assert_eq!(
        last.steps[0],
        ("USER".into(), "65532:65532".into()),
        "the first step"
    );
    let mut others = last.steps[1..]
        .iter()
        .map(|(instruction, _)| instruction.as_str());
    assert!(
        others.all(|step| matches!(step, "COPY" | "ENTRYPOINT")),
        "nothing is run, written or opened"
    );
    let targets: Vec<String> = copied(last).into_iter().map(|(_, _, to)| to).collect();
    assert_eq!(targets, ["/usr/bin/ds4", "/usr/bin/ds4-gpu-check"]);
    let (_, entry) = last.steps.last().unwrap();
    assert_eq!(entry, "[\"/usr/bin/ds4\"]");
}

/// The toolkit that the build copies is of the version that `cargo xtask fatbin` pins and that the docs' table is of.
#[test]
fn the_toolkit_is_the_one_that_the_device_code_was_checked_with() {
    let (arguments, stages) = file();
    assert!(
        arguments
            .iter()
            .any(|argument| argument.contains("nvidia/cuda:13.0.2-devel")),
        "{arguments:?}"
    );
    let build = stages.iter().find(|stage| stage.name == "build").unwrap();
    assert!(
        build
            .steps
            .iter()
            .any(|(_, rest)| rest.contains("/usr/local/cuda-13.0 "))
    );
    let pinned = std::fs::read_to_string(root().join("xtask/src/fatbin.rs")).unwrap();
    // The compiler of CUDA 13.0 Update 2.
    assert!(
        pinned.contains("nvidia-cuda-nvcc==13.0.88"),
        "another compiler is pinned"
    );
}
