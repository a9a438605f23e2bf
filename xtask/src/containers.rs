//! `cargo xtask containers`: builds the Dockerfiles for real, on bases made here from Debian and PyPI, and runs what comes out as a cluster would: as nobody, on
//! a root that cannot be written. No registry is asked.

mod bases;
mod podman;
mod target;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::is_root;
use crate::progress::step;
use crate::{repository, tools};
use bases::Bases;
use podman::{Build, Podman};
use target::Target;

/// The file that shows it is there, and Debian's package.
const PACKAGES: &[(&str, &str)] = &[
    ("/usr/bin/podman", "podman"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/sbin/runc", "runc"),
];

const CUDA: &str = "localhost/ds4-cuda:dev";
const RUNNER: &str = "localhost/ds4-runner:dev";
/// What the programs may add to their base: half as much again as they took when this was written, not optimised: 58 MB.
const MOST_BYTES: u64 = 86 << 20;
/// `nonroot` of the usual minimal images.
const NOBODY: u32 = 65532;
/// Where the NVIDIA runtime would put the driver is its own affair; here the emulated one lies in this folder.
const DRIVER: &str = "/driver";

/// Builds both files and runs their images.
///
/// # Errors
/// When a build fails, or an image is not what it should be.
pub fn run() -> Result<()> {
    ensure!(
        cfg!(target_os = "linux") && is_root(),
        "images are built in namespaces of this machine: run this on Linux, as root"
    );
    tools::install(&tools::missing(PACKAGES))?;
    let podman = Podman::new();
    podman.clean()?;
    let bases = Bases::make(&podman)?;
    let target = Target::above_ours()?;
    let build = |file, stage, image| {
        let arguments = bases.arguments();
        step(&format!("{file} as {image}"), || {
            podman.build(&Build {
                file,
                stage,
                image,
                arguments,
                target: target.folder(),
            })
        })
    };
    build("Dockerfile.cuda", None, CUDA)?;
    step("the CUDA image runs", || check_cuda(&podman, bases.runtime()))?;
    build("Dockerfile.metal-runner", Some("linux"), RUNNER)?;
    step("the runner's image runs", || check_runner(&podman))
}

fn check_cuda(podman: &Podman, base: &str) -> Result<()> {
    let user = podman.inspect(CUDA, "{{.Config.User}}")?;
    ensure!(
        user == format!("{NOBODY}:{NOBODY}"),
        "{CUDA}: user: expected {NOBODY}:{NOBODY}, found {user:?}"
    );
    let size = |image| -> Result<u64> { Ok(podman.inspect(image, "{{.Size}}")?.parse()?) };
    let added = size(CUDA)?.saturating_sub(size(base)?);
    ensure!(
        added <= MOST_BYTES,
        "{CUDA}: expected at most {MOST_BYTES} bytes beside its base, found {added}"
    );
    eprintln!(
        "      {} MiB beside the base's {} MiB",
        added >> 20,
        size(base)? >> 20
    );
    podman.run(CUDA, &[], &["--version"])?;

    let models = repository::cache().join("containers/models");
    std::fs::create_dir_all(&models).with_context(|| models.display().to_string())?;
    std::fs::set_permissions(&models, Permissions::from_mode(0o777))?;
    let model = models.join("micro.gguf");
    // Left by an earlier run, or never there.
    let _ = std::fs::remove_file(&model);
    let emulated = emulated_driver()?;
    let mounts = [
        format!("{}:/models", models.display()),
        format!("{}:{DRIVER}:ro", emulated.display()),
    ];
    podman.run(
        CUDA,
        &mounts,
        &["synth", "--preset", "micro", "--out", "/models/micro.gguf"],
    )?;
    let owner = std::fs::metadata(&model)
        .context("the model that the container wrote")?
        .uid();
    ensure!(
        owner == NOBODY,
        "a file of the container: expected user {NOBODY}, found {owner}"
    );
    refused(podman)?;
    answer(podman, &mounts)
}

/// Nothing can be written where no volume is.
fn refused(podman: &Podman) -> Result<()> {
    let written = podman.run(
        CUDA,
        &[],
        &["synth", "--preset", "micro", "--out", "/tmp/micro.gguf"],
    );
    let said = written
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(
        said.contains("Read-only file system"),
        "a write beside the volumes: expected a refusal, found {said:?}"
    );
    Ok(())
}

/// The same answer from the device's kernels, emulated, as from the CPU.
fn answer(podman: &Podman, mounts: &[String]) -> Result<()> {
    let ask = |backend: &str| -> Result<String> {
        let words =
            "run --model /models/micro.gguf --json --ignore-eos --temp 0 --max-tokens 8 -p Hello --backend";
        let words: Vec<&str> = words.split(' ').chain([backend]).collect();
        let said = podman.run(CUDA, mounts, &words)?;
        let summary: Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
        Ok(summary["text"].to_string())
    };
    let (cuda, cpu) = (ask("cuda")?, ask("cpu")?);
    ensure!(
        cuda == cpu && cuda.len() > 2,
        "the device says {cuda}, the CPU {cpu}"
    );
    Ok(())
}

fn check_runner(podman: &Podman) -> Result<()> {
    let help = podman.run(RUNNER, &[], &["--help"])?;
    ensure!(help.contains("Usage: ds4-runner"), "{RUNNER}: {help}");
    let version = podman.program(RUNNER, "/usr/bin/ds4", &["--version"])?;
    ensure!(version.starts_with("ds4 "), "{RUNNER}: {version}");
    Ok(())
}

/// The folder of the emulated `libcuda.so`, which the build of the tests made.
fn emulated_driver() -> Result<std::path::PathBuf> {
    let built = crate::process::output(
        std::process::Command::new(env!("CARGO"))
            .args(["build", "--package", "ds4-emu", "--message-format=json"])
            .current_dir(repository::root()),
    )?;
    let messages = built
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut folders = messages.filter_map(|message| {
        let folder = message["out_dir"].as_str().map(Path::new)?;
        folder.join("libcuda.so").is_file().then(|| folder.to_path_buf())
    });
    folders
        .next()
        .context("the build of ds4-emu: expected libcuda.so, found none")
}
