//! The programs of the test cluster: built from pinned Go modules into `.cache/tools`, and Debian packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process::{self, found, is_root};
use crate::progress::step;
use crate::repository;

/// A Go module under `tests/cluster` and the programs it builds.
pub struct Module {
    folder: &'static str,
    packages: &'static [&'static str],
    /// Other names of the first program.
    links: &'static [&'static str],
    /// What a cold build takes on two cores.
    cold: &'static str,
}

/// Kubernetes, etcd, CoreDNS, helm, and the two small programs that images need.
pub const KUBE: Module = Module {
    folder: "kube",
    packages: &[
        "./cmd/kubebox",
        "./cmd/etcd",
        "./cmd/coredns",
        "./cmd/pause",
        "./cmd/cat",
        "helm.sh/helm/v3/cmd/helm",
    ],
    links: &[
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
    ],
    cold: "about 8 minutes on two cores",
};

/// The OpenTelemetry Collector.
pub const COLLECTOR: Module = Module {
    folder: "otelcol",
    packages: &["."],
    links: &[],
    cold: "about 1 minute on two cores",
};

/// An operator of the usual make, to compare ours with.
pub const PEER: Module = Module {
    folder: "peer",
    packages: &["."],
    links: &[],
    cold: "about 3 minutes on two cores",
};

/// kind, for machines with Docker.
pub const KIND: Module = Module {
    folder: "kind",
    packages: &["sigs.k8s.io/kind"],
    links: &[],
    cold: "about 1 minute on two cores",
};

impl Module {
    /// Where its programs lie once built. The folder's name holds a hash of everything that decides them.
    ///
    /// # Errors
    /// When the module's files cannot be read.
    pub fn programs(&self) -> Result<PathBuf> {
        let key = key(&self.source())?;
        Ok(repository::cache()
            .join("tools")
            .join(format!("{}-{key}", self.folder)))
    }

    /// Builds the programs unless they are there, and returns their folder.
    ///
    /// # Errors
    /// When Go is missing or the build fails.
    pub fn build(&self) -> Result<PathBuf> {
        let programs = self.programs()?;
        if programs.is_dir() {
            return Ok(programs);
        }
        if !found("go") {
            bail!(
                "go is missing: install Go 1.26 or newer (Kubernetes and the collector are built from their modules)"
            );
        }
        let title = format!("building tests/cluster/{} (cold: {})", self.folder, self.cold);
        step(&title, || self.compile(&programs))?;
        Ok(programs)
    }

    fn source(&self) -> PathBuf {
        repository::root().join("tests/cluster").join(self.folder)
    }

    fn compile(&self, programs: &Path) -> Result<()> {
        let unfinished = programs.with_extension("unfinished");
        std::fs::create_dir_all(&unfinished)?;
        let log = programs.with_extension("log");
        process::logged(
            Command::new("go")
                .args(["build", "-mod=readonly", "-trimpath", "-ldflags"])
                .arg(linker_flags(&self.source())?)
                .arg("-o")
                .arg(format!("{}/", unfinished.display()))
                .args(self.packages)
                .env("CGO_ENABLED", "0")
                .current_dir(self.source()),
            &log,
        )?;
        for link in self.links {
            let path = unfinished.join(link);
            if !path.exists() {
                std::os::unix::fs::symlink("kubebox", path)?;
            }
        }
        std::fs::rename(&unfinished, programs)
            .with_context(|| format!("moving what was built to {}", programs.display()))
    }
}

/// Strips the programs and tells Kubernetes its own version, which helm and clients ask for.
fn linker_flags(source: &Path) -> Result<String> {
    let text = std::fs::read_to_string(source.join("go.mod"))?;
    let mut flags = "-s -w".to_owned();
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split(' ').next());
    if let Some(version) = version {
        let minor = version.split('.').nth(1).unwrap_or_default();
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            flags += &format!(
                " -X {package}.gitVersion={version} -X {package}.gitMajor=1 -X {package}.gitMinor={minor} \
                 -X {package}.gitTreeState=clean -X {package}.buildDate=1970-01-01T00:00:00Z"
            );
        }
    }
    Ok(flags)
}

/// 16 hex digits over the module's files and Go's version.
fn key(source: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(source, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.strip_prefix(source)?.as_os_str().as_encoded_bytes());
        hash.update(std::fs::read(&file)?);
    }
    Ok(format!("{:x}", hash.finalize()).chars().take(16).collect())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// What a node needs from the distribution: the file that shows it is there, and Debian's package.
const DEBIAN: &[(&str, &str)] = &[
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/bin/socat", "socat"),
    ("/usr/bin/nsenter", "util-linux"),
];

/// Where Debian's containernetworking-plugins lie.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Installs what nodes need from Debian, as root; otherwise says what to install.
///
/// # Errors
/// When something is missing that cannot be installed here.
pub fn debian_packages() -> Result<()> {
    let mut missing = missing(DEBIAN);
    if !["/sbin/ip", "/usr/sbin/ip", "/bin/ip", "/usr/bin/ip"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        missing.push("iproute2");
    }
    install(&missing)
}

/// Debian's packages of which the file that shows them is not there.
#[must_use]
pub fn missing(packages: &[(&str, &'static str)]) -> Vec<&'static str> {
    let missing = packages.iter().filter(|(file, _)| !Path::new(file).exists());
    missing.map(|(_, package)| *package).collect()
}

/// Installs packages from Debian, as root; otherwise says what to install.
///
/// # Errors
/// When they cannot be installed here.
pub fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !found("apt-get") || !is_root() {
        bail!("missing on this machine: {list}; on Debian, as root: apt-get install {list}");
    }
    let log = repository::cache().join("tools/apt.log");
    step(&format!("installing {list}"), || {
        process::logged(Command::new("apt-get").args(["update", "-q"]), &log)?;
        process::logged(
            Command::new("apt-get")
                .args(["install", "-qy", "--no-install-recommends"])
                .args(missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
            &log,
        )
    })
}
