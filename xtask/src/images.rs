//! `cargo xtask images`: the project's images and the cluster's, as archives that any container runtime imports.

mod libraries;
mod pack;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{self, found};
use crate::progress::step;
use crate::repository;
use crate::tools;
use pack::{Entry, Image};

/// The user of every container of the project: `nonroot` of the usual minimal images.
const USER: &str = "65532:65532";

/// Certificate authorities of this machine, for model downloads.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image that this command builds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// The engine: `ds4`.
    Engine,
    /// The operator: `ds4-operator`.
    Operator,
    /// The first process of every pod.
    Pause,
    /// The cluster's DNS server.
    CoreDns,
    /// The OpenTelemetry Collector.
    Collector,
}

impl Name {
    /// What runs in a cluster beside the cluster's own: the project's two, and the collector.
    pub const OURS: [Self; 3] = [Self::Engine, Self::Operator, Self::Collector];

    /// `repository:tag` as manifests name it.
    #[must_use]
    pub const fn reference(self) -> &'static str {
        match self {
            Self::Engine => "localhost/ds4:dev",
            Self::Operator => "localhost/ds4-operator:dev",
            Self::Pause => "localhost/pause:dev",
            Self::CoreDns => "localhost/coredns:dev",
            Self::Collector => "localhost/otelcol:dev",
        }
    }

    /// Where its archive lies.
    #[must_use]
    pub fn archive(self) -> PathBuf {
        let file = match self {
            Self::Engine => "ds4.tar",
            Self::Operator => "ds4-operator.tar",
            Self::Pause => "pause.tar",
            Self::CoreDns => "coredns.tar",
            Self::Collector => "otelcol.tar",
        };
        repository::cache().join("images").join(file)
    }

    /// Builds its program and packs it; returns the archive.
    ///
    /// # Errors
    /// When a build fails.
    pub fn build(self) -> Result<PathBuf> {
        let archive = self.archive();
        let image = match self {
            Self::Engine => cargo_image(self, "ds4-cli", "ds4")?,
            Self::Operator => cargo_image(self, "ds4-operator", "ds4-operator")?,
            Self::Pause => go_image(self, &tools::KUBE, &["pause"])?,
            Self::CoreDns => go_image(self, &tools::KUBE, &["coredns"])?,
            Self::Collector => collector_image()?,
        };
        step(&format!("packing {}", self.reference()), || image.write(&archive))?;
        Ok(archive)
    }
}

/// Builds these images.
///
/// # Errors
/// When one cannot be built.
pub fn build(names: &[Name]) -> Result<Vec<PathBuf>> {
    if !cfg!(target_os = "linux") {
        bail!("images hold Linux programs: run this on Linux");
    }
    names.iter().map(|name| name.build()).collect()
}

fn cargo_image(name: Name, package: &str, binary: &str) -> Result<Image> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = repository::cache().join("images").join(format!("{binary}.log"));
    step(&format!("building {binary}"), || {
        process::logged(
            Command::new(cargo)
                .args(["build", "--package", package, "--bin", binary])
                .current_dir(repository::root()),
            &log,
        )
    })?;
    let built = repository::target().join("debug").join(binary);
    let program = stripped(&built, binary)?;
    let mut entries = base();
    entries.push(Entry::program(&format!("usr/bin/{binary}"), &program));
    for library in libraries::closure(&built)? {
        entries.push(Entry::program(&library.path, library.source));
    }
    if Path::new(CERTIFICATES).exists() {
        entries.push(Entry {
            mode: 0o644,
            ..Entry::program("etc/ssl/certs/ca-certificates.crt", CERTIFICATES)
        });
    }
    Ok(image(name, binary, entries))
}

/// A copy without debug information, where binutils are at hand: images then stay small.
fn stripped(built: &Path, binary: &str) -> Result<PathBuf> {
    if !found("objcopy") {
        return Ok(built.to_path_buf());
    }
    let copy = repository::cache().join("images").join(binary);
    process::output(Command::new("objcopy").arg("--strip-debug").arg(built).arg(&copy))?;
    Ok(copy)
}

fn go_image(name: Name, module: &tools::Module, programs: &[&str]) -> Result<Image> {
    let folder = module.build()?;
    let mut entries = base();
    for program in programs {
        entries.push(Entry::program(
            &format!("usr/bin/{program}"),
            folder.join(program),
        ));
    }
    Ok(image(
        name,
        programs.first().copied().unwrap_or_default(),
        entries,
    ))
}

fn collector_image() -> Result<Image> {
    let mut image = go_image(Name::Collector, &tools::COLLECTOR, &["otelcol"])?;
    let cat = tools::KUBE.build()?.join("cat");
    image.entries.push(Entry::program("usr/bin/cat", cat));
    Ok(image)
}

fn image(name: Name, program: &str, entries: Vec<Entry>) -> Image {
    Image {
        reference: name.reference().to_owned(),
        entrypoint: vec![format!("/usr/bin/{program}")],
        user: USER.to_owned(),
        entries,
    }
}

/// What every image has: users, name lookup through DNS, a temporary folder.
fn base() -> Vec<Entry> {
    vec![
        Entry::folder("tmp", 0o1777),
        Entry::text(
            "etc/passwd",
            "root:x:0:0:root:/:/sbin/nologin\nds4:x:65532:65532:ds4:/tmp:/sbin/nologin\n",
        ),
        Entry::text("etc/group", "root:x:0:\nds4:x:65532:\n"),
        Entry::text(
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
    ]
}
