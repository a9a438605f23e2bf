//! `cargo xtask fatbin`: the CUDA kernels for devices, by nvcc from pinned PyPI wheels; no GPU and no CUDA installation is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::step;
use crate::{python, repository};

/// nvcc 13.0 and what it calls. 13.0 goes with drivers from 580 on.
pub(crate) const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Devices with code of their own: A100, RTX 4000, H100, B200, RTX 5000, GB10.
const ARCHITECTURES: [&str; 6] = ["80", "89", "90a", "100", "120", "121"];
/// Others compile this when they load it.
const PTX: &str = "80";

/// Builds `.cache/cuda/ds4.fatbin`, and checks it: names, parameters, registers, and the table in the docs, which `write` renews.
///
/// # Errors
/// When nvcc cannot be installed, does not compile, or warns, and when a check fails.
pub fn run(write: bool) -> Result<()> {
    let image = build()?;
    check(write)?;
    eprintln!("{0}: embed it with DS4_FATBIN={0} cargo build", image.display());
    Ok(())
}

/// Builds `.cache/cuda/ds4.fatbin` and returns its path.
///
/// # Errors
/// When nvcc cannot be installed, does not compile, or warns.
pub fn build() -> Result<PathBuf> {
    let folder = repository::cache().join("cuda");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (toolkit, image) = (toolkit()?, folder.join("ds4.fatbin"));
    step("the kernels for devices (about a minute)", || {
        compile(&toolkit, &image)
    })?;
    Ok(image)
}

fn check(write: bool) -> Result<()> {
    let mut test = Command::new(env!("CARGO"));
    test.args([
        "test",
        "--package",
        "ds4-kernels-cuda",
        "--test",
        "fatbin",
        "--",
        "--ignored",
    ]);
    if write {
        test.env("DS4_WRITE_DOCS", "1");
    }
    let status = test.status().context("starting cargo")?;
    ensure!(status.success(), "the device code failed its checks");
    Ok(())
}

/// Writes the roofline of the kernels, or with `check` compares it: a program of its own does, which knows the model's layout.
///
/// # Errors
/// When it does not build, or the document is another one.
pub fn roofline(check: bool) -> Result<()> {
    let mut program = Command::new(env!("CARGO"));
    program.args([
        "run",
        "--quiet",
        "--package",
        "ds4-gpu-check",
        "--bin",
        "ds4-roofline",
        "--",
    ]);
    program.args(check.then_some("--check"));
    let status = program.status().context("starting cargo")?;
    ensure!(status.success(), "the roofline ended with {status}");
    Ok(())
}

/// The folder with `bin/nvcc`: `CUDA_HOME` when it is set, else the wheels.
pub(crate) fn toolkit() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        return Ok(PathBuf::from(home));
    }
    let python = python::environment("nvcc-13.0", &WHEELS)?;
    let libraries = python.with_file_name("../lib");
    let versions = std::fs::read_dir(&libraries).with_context(|| libraries.display().to_string())?;
    let found = versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("site-packages/nvidia/cu13"))
        .find(|toolkit| toolkit.join("bin/nvcc").is_file());
    found.with_context(|| {
        format!(
            "{}: expected nvidia/cu13/bin/nvcc, found none",
            libraries.display()
        )
    })
}

fn compile(toolkit: &Path, image: &Path) -> Result<()> {
    let source = repository::root().join("kernels/cuda/cu/ds4.cu");
    let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
    nvcc.env("CUDA_HOME", toolkit);
    // Nothing is fused but what says so: results have the bits of the reference.
    nvcc.args([
        "-fatbin",
        "-O3",
        "-std=c++17",
        "-fmad=false",
        "-Werror",
        "all-warnings",
        "--threads",
        "2",
        "-no-compress",
    ]);
    for architecture in ARCHITECTURES {
        nvcc.args([
            "-gencode",
            &format!("arch=compute_{architecture},code=sm_{architecture}"),
        ]);
    }
    nvcc.args(["-gencode", &format!("arch=compute_{PTX},code=compute_{PTX}")]);
    succeed(nvcc.arg("-o").arg(image).arg(source))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("warning") {
        bail!(
            "{command:?} ended with {}:\n{}{said}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}
