//! The bases that the Dockerfiles take as arguments, made here: Debian's packages of this machine's release, and CUDA's compiler from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::podman::Podman;
use crate::process;
use crate::progress::step;
use crate::{fatbin, repository};

/// What the programs are linked with; nothing else, no shell either, as in the base that the Dockerfile names.
const RUNTIME: &str = "base-files,libc6,libgcc-s1";
/// What Rust links with and nvcc compiles for the host with.
const BUILD: &str = "g++,ca-certificates";
/// Where the toolchain of this machine is mounted.
const RUST: &str = "/usr/local/rust";

pub(super) struct Bases {
    runtime: String,
    build: String,
    cuda: String,
    /// The compiler that this machine has for this repository, and where cargo keeps what it downloads.
    rust: PathBuf,
    registry: PathBuf,
}

impl Bases {
    /// Makes those that are not there.
    pub(super) fn make(podman: &Podman) -> Result<Self> {
        let release = release()?;
        let toolkit = fatbin::toolkit()?;
        let rust = process::output(
            Command::new("rustc")
                .args(["--print", "sysroot"])
                .current_dir(repository::root()),
        )?;
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
        let home = home.context("CARGO_HOME: expected cargo's folder, found none")?;
        let environment = [
            format!("ENV PATH={RUST}/bin:/usr/bin:/bin"),
            // The sources' paths are part of what cargo takes for the same build.
            format!("ENV CARGO_HOME={}", home.display()),
            "ENV CARGO_INCREMENTAL=0".to_owned(),
        ];
        let bases = Self {
            runtime: name("runtime", &[&release, RUNTIME]),
            build: name("build", &[&release, BUILD, &environment.concat()]),
            cuda: name("cuda", &[&fatbin::WHEELS.concat(), &toolkit.to_string_lossy()]),
            rust: PathBuf::from(rust.trim()),
            registry: home.join("registry"),
        };
        debian(
            podman,
            &bases.runtime,
            &["--variant=extract", &format!("--include={RUNTIME}"), &release],
            &[],
        )?;
        debian(
            podman,
            &bases.build,
            &["--variant=essential", &format!("--include={BUILD}"), &release],
            &environment,
        )?;
        toolkit_image(podman, &bases.cuda, &toolkit)?;
        Ok(bases)
    }

    pub(super) fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The bases as the Dockerfiles' arguments, a build that takes little time, and what it needs of this machine.
    pub(super) fn arguments(&self) -> Vec<String> {
        let arguments = [
            ("CUDA_BASE", self.cuda.as_str()),
            ("RUST_BASE", &self.build),
            ("RUNTIME_BASE", &self.runtime),
            ("PROFILE", "dev"),
            ("FOLDER", "debug"),
            ("COMMIT", "test"),
        ];
        let mut words: Vec<String> = Vec::new();
        for (name, value) in arguments {
            words.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
        }
        let registry = self.registry.display();
        for mount in [
            format!("{}:{RUST}:ro", self.rust.display()),
            format!("{registry}:{registry}"),
        ] {
            words.extend(["--volume".to_owned(), mount]);
        }
        words
    }
}

/// A name that holds everything that decides the image.
fn name(which: &str, decided_by: &[&str]) -> String {
    let hash = format!("{:x}", Sha256::digest(decided_by.join("\n")));
    format!("localhost/ds4-base-{which}:{}", &hash[..12])
}

/// The release of this machine, such as `bookworm`.
fn release() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = line.context("/etc/os-release: expected VERSION_CODENAME, found none")?;
    Ok(name.trim_matches('"').to_owned())
}

fn debian(podman: &Podman, image: &str, words: &[&str], changes: &[String]) -> Result<()> {
    if podman.has(image) {
        return Ok(());
    }
    let archive = repository::cache().join("containers/base.tar");
    step(&format!("{image} from {}", words.join(" ")), || {
        let mut command = Command::new("mmdebstrap");
        for folder in ["doc", "man", "locale", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
        }
        process::logged(command.args(words).arg(&archive), &podman.log("mmdebstrap"))?;
        podman.import(&archive, image, changes)?;
        Ok(std::fs::remove_file(&archive)?)
    })
}

/// The toolkit where NVIDIA's base has it.
fn toolkit_image(podman: &Podman, image: &str, toolkit: &Path) -> Result<()> {
    if podman.has(image) {
        return Ok(());
    }
    let archive = repository::cache().join("containers/base.tar");
    step(&format!("{image} from {}", toolkit.display()), || {
        let mut tar = Command::new("tar");
        tar.args(["--transform", "s,^\\.,usr/local/cuda-13.0,", "-C"])
            .arg(toolkit);
        process::output(tar.arg("-cf").arg(&archive).arg("."))?;
        podman.import(&archive, image, &[])?;
        Ok(std::fs::remove_file(&archive)?)
    })
}
