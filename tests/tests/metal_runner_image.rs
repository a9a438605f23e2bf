//! The macOS stages of `Dockerfile.metal-runner`, for which no base was at hand, copy what they build; `cargo xtask containers` builds the others.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cargo_metadata::MetadataCommand;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The lines of the stages for macOS.
fn stages() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("Dockerfile.metal-runner")).expect("the file");
    let lines = text.lines().skip_while(|line| *line != "FROM ${CROSS} AS cross");
    lines
        .take_while(|line| !line.ends_with("AS build"))
        .map(str::to_owned)
        .collect()
}

/// Programs of some packages of this workspace.
fn programs(packages: &BTreeSet<&str>) -> BTreeSet<String> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    let built = metadata
        .packages
        .iter()
        .filter(|package| packages.contains(package.name.as_str()));
    let targets = built.flat_map(|package| &package.targets);
    targets
        .filter(|target| target.is_bin())
        .map(|target| target.name.clone())
        .collect()
}

#[test]
fn every_program_that_is_copied_is_built_and_every_other_file_is_there() {
    let stages = stages();
    let build = stages.iter().find(|line| line.starts_with("RUN cargo zigbuild"));
    let words: Vec<&str> = build.expect("a build").split(' ').collect();
    let packages = words
        .windows(2)
        .filter(|pair| pair[0] == "-p")
        .map(|pair| pair[1]);
    let built = programs(&packages.collect());
    let mut copied = BTreeSet::new();
    for line in stages
        .iter()
        .filter_map(|line| line.strip_prefix("COPY --from=cross /src/"))
    {
        let source = line.split(' ').next().unwrap_or_default();
        match source.strip_prefix("target/aarch64-apple-darwin/release/") {
            Some(program) => assert!(copied.insert(program.to_owned())),
            None => assert!(root().join(source).exists(), "{source}"),
        }
    }
    assert_eq!(copied, built);
}
