//! `Dockerfile.metal-runner` names packages, programs and files that exist; no Docker is asked.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cargo_metadata::MetadataCommand;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn instructions(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("Dockerfile.metal-runner")).expect("the file");
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

/// Programs of a package of this workspace.
fn programs(package: &str) -> BTreeSet<String> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    let found = metadata
        .packages
        .iter()
        .find(|known| known.name.as_str() == package);
    let targets = found
        .unwrap_or_else(|| panic!("no package {package}"))
        .targets
        .iter();
    targets
        .filter(|target| target.is_bin())
        .map(|target| target.name.clone())
        .collect()
}

#[test]
fn every_program_that_is_copied_is_built_by_the_stage_it_comes_from() {
    let builds: Vec<Vec<String>> = instructions("RUN")
        .into_iter()
        .filter(|words| words[1] == "cargo")
        .collect();
    assert_eq!(builds.len(), 2, "one for macOS, one for Linux: {builds:?}");
    let mut copied = 0;
    for copy in instructions("COPY --from=") {
        let source = copy[2]
            .strip_prefix("/src/")
            .expect("a path of the build's folder");
        let Some(place) = source.strip_prefix("target/") else {
            assert!(root().join(source).exists(), "{source}");
            continue;
        };
        let (folder, program) = place.rsplit_once('/').expect("a folder and a program");
        let build = builds
            .iter()
            .find(|words| match folder.strip_suffix("/release") {
                Some(target) => words.iter().any(|word| word == target),
                None => !words.iter().any(|word| word == "--target"),
            })
            .expect("a build for it");
        let packages = build
            .windows(2)
            .filter(|pair| pair[0] == "-p")
            .map(|pair| pair[1].clone());
        assert!(
            packages
                .into_iter()
                .any(|package| programs(&package).contains(program)),
            "{program} is not built by {build:?}"
        );
        copied += 1;
    }
    assert_eq!(copied, 4, "the engine and the runner, for both systems");
}

#[test]
fn both_variants_can_be_asked_for_and_bases_are_arguments() {
    let stages: Vec<String> = instructions("FROM")
        .iter()
        .filter_map(|words| words.get(3).cloned())
        .collect();
    assert_eq!(stages, ["cross", "darwin", "build", "linux"]);
    let arguments: Vec<String> = instructions("ARG").iter().map(|words| words[1].clone()).collect();
    assert!(
        arguments.iter().any(|argument| argument.starts_with("CROSS=")),
        "{arguments:?}"
    );
}
