//! Which crate may depend on which: the arrows of ARCHITECTURE.md, held over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every crate of the workspace and the crates of ours it may name under `[dependencies]`.
/// An arrow that is not here is refused; an arrow that is here need not be used.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ds4-kernels", &[]),
    ("ds4-kernels-cpu", &["ds4-kernels"]),
    ("ds4-kernels-cuda", &["ds4-kernels"]),
    ("ds4-kernels-metal", &["ds4-kernels"]),
    // Test only: nothing names it but under `[dev-dependencies]`. It is a driver of the Metal host code.
    ("ds4-emu", &["ds4-kernels-cuda", "ds4-kernels-metal"]),
    ("ds4-kernels-suite", &["ds4-kernels", "ds4-kernels-cuda"]),
    ("ds4-gguf", &["ds4-kernels"]),
    ("ds4-synth", &["ds4-gguf", "ds4-kernels"]),
    ("ds4-tokenizer", &["ds4-gguf"]),
    ("ds4-plan", &[]),
    ("ds4-model", &["ds4-gguf", "ds4-kernels", "ds4-plan"]),
    (
        "ds4-model-cuda",
        &["ds4-gguf", "ds4-kernels", "ds4-kernels-cuda", "ds4-model"],
    ),
    (
        "ds4-gpu-check",
        &[
            "ds4-gguf",
            "ds4-kernels",
            "ds4-kernels-cpu",
            "ds4-kernels-cuda",
            "ds4-kernels-suite",
            "ds4-model",
            "ds4-model-cuda",
            "ds4-synth",
        ],
    ),
    (
        "ds4-model-metal",
        &["ds4-gguf", "ds4-kernels", "ds4-kernels-metal", "ds4-model"],
    ),
    ("ds4-proto", &[]),
    ("ds4-telemetry", &[]),
    ("ds4-fetch", &["ds4-gguf"]),
    (
        "ds4-runtime",
        &[
            "ds4-gguf",
            "ds4-kernels",
            "ds4-model",
            "ds4-proto",
            "ds4-telemetry",
            "ds4-tokenizer",
        ],
    ),
    ("ds4-grammar", &["ds4-model", "ds4-tokenizer"]),
    (
        "ds4-server",
        &[
            "ds4-grammar",
            "ds4-model",
            "ds4-runtime",
            "ds4-telemetry",
            "ds4-tokenizer",
        ],
    ),
    (
        "ds4-cli",
        &[
            "ds4-fetch",
            "ds4-gguf",
            "ds4-kernels",
            "ds4-kernels-cuda",
            "ds4-model-cuda",
            "ds4-kernels-metal",
            "ds4-model-metal",
            "ds4-kernels-cpu",
            "ds4-model",
            "ds4-plan",
            "ds4-runtime",
            "ds4-server",
            "ds4-synth",
            "ds4-telemetry",
            "ds4-tokenizer",
        ],
    ),
    ("ds4-api", &[]),
    // Never engine or kernels: the operator knows pods and flags, not tensors.
    ("ds4-operator", &["ds4-api", "ds4-telemetry"]),
    // Knows pods and processes: engines are programs that it starts.
    ("ds4-runner", &[]),
    ("ds4-trace", &[]),
    // The plugin asks the planner that `ds4 inspect` asks; it reaches nothing else of the engine.
    ("ds4-plugin", &["ds4-api", "ds4-plan", "ds4-trace"]),
    ("ds4-tests", &["ds4-api", "ds4-synth"]),
    ("xtask", &["ds4-api", "ds4-trace"]),
];

fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    metadata
        .packages
        .iter()
        .map(|package| {
            let ours = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal && dependency.path.is_some())
                .map(|dependency| dependency.name.clone())
                .collect();
            (package.name.to_string(), ours)
        })
        .collect()
}

#[test]
fn every_crate_is_placed_in_the_picture() {
    let found: BTreeSet<String> = arrows().into_keys().collect();
    let placed: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        found, placed,
        "a new crate needs a line in ALLOWED and in ARCHITECTURE.md"
    );
}

#[test]
fn no_crate_points_against_the_arrows() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let wrong: Vec<String> = arrows()
        .iter()
        .flat_map(|(from, targets)| {
            let permitted = allowed.get(from.as_str()).copied().unwrap_or_default();
            targets
                .iter()
                .filter(move |to| !permitted.contains(&to.as_str()))
                .map(move |to| format!("{from} -> {to}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "arrows that ARCHITECTURE.md does not have: {wrong:?}"
    );
}

#[test]
fn the_operator_reaches_no_engine_crate_even_through_others() {
    let all = arrows();
    let mut seen = BTreeSet::new();
    let mut queue = vec!["ds4-operator".to_owned()];
    while let Some(name) = queue.pop() {
        if let Some(next) = all.get(&name) {
            queue.extend(next.iter().filter(|n| seen.insert((*n).clone())).cloned());
        }
    }
    let engine = [
        "ds4-kernels",
        "ds4-kernels-cpu",
        "ds4-gguf",
        "ds4-model",
        "ds4-proto",
        "ds4-runtime",
        "ds4-server",
    ];
    let reached: Vec<_> = engine.iter().filter(|name| seen.contains(**name)).collect();
    assert!(reached.is_empty(), "ds4-operator reaches {reached:?}");
}
