//! What the node is told, in one file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::quantity;

/// Where `install` puts the file, and where `run` looks for it.
pub(crate) const PLACE: &str = "/etc/ds4-runner/config.yaml";

/// The file; unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the Node.
    pub(crate) node: String,
    /// The address at which the cluster reaches this machine, and every pod on it.
    pub(crate) address: IpAddr,
    /// Folder of the runner: certificates, and one folder per pod.
    #[serde(default = "default_root")]
    pub(crate) root: PathBuf,
    /// What `ds4-runner invite` wrote.
    #[serde(default = "default_invitation")]
    pub(crate) invitation: PathBuf,
    /// Port of the kubelet API (logs).
    #[serde(default = "default_port")]
    pub(crate) port: u16,
    /// Which images pods may name, and the engines that run in their stead.
    pub(crate) engines: Vec<Engine>,
    /// Folders under which a pod's hostPath may lie.
    #[serde(default)]
    pub(crate) host_path_roots: Vec<PathBuf>,
    /// Memory that pods are not offered, as a quantity.
    #[serde(default = "default_reserved")]
    pub(crate) reserved_memory: String,
    /// Below so much available memory a pod is evicted, as a quantity.
    #[serde(default = "default_eviction")]
    pub(crate) eviction_memory: String,
    /// Time between two renewals of the Lease; the API server is told four times that.
    #[serde(default = "default_heartbeat")]
    pub(crate) heartbeat_seconds: u64,
    /// More labels of the Node.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// This machine is not a Mac and stands in for one in tests: the Node says so.
    #[serde(default)]
    pub(crate) stand_in: bool,
}

/// A bundled engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Engine {
    /// The image that a pod names, exactly.
    pub(crate) image: String,
    /// What the program must say when asked for its version.
    pub(crate) version: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Flags with values (`--backend`, `cpu`) that replace the pod's own of that name; the pod's status and log say so.
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
}

fn default_root() -> PathBuf {
    "/var/lib/ds4-runner".into()
}

fn default_invitation() -> PathBuf {
    "/etc/ds4-runner/invitation.yaml".into()
}

const fn default_port() -> u16 {
    10250
}

fn default_reserved() -> String {
    "4Gi".into()
}

fn default_eviction() -> String {
    "500Mi".into()
}

const fn default_heartbeat() -> u64 {
    10
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Names the field that is wrong, and what was expected.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_yaml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        ensure!(
            (1..=63).contains(&self.node.len()) && self.node.chars().all(plain),
            "node: expected 1 to 63 of a-z, 0-9, - and ., found {:?}",
            self.node
        );
        ensure!(
            !self.engines.is_empty(),
            "engines: expected at least one, found none"
        );
        ensure!(
            self.heartbeat_seconds > 0,
            "heartbeatSeconds: expected more than 0"
        );
        self.reserved()?;
        self.eviction()?;
        for root in self.host_path_roots.iter().chain([&self.root]) {
            ensure!(
                root.is_absolute(),
                "{}: expected an absolute path",
                root.display()
            );
        }
        for engine in &self.engines {
            engine.check()?;
        }
        Ok(())
    }

    /// Bytes that pods are not offered.
    pub(crate) fn reserved(&self) -> Result<u64> {
        quantity::bytes(&self.reserved_memory).context("reservedMemory")
    }

    /// Bytes below which a pod is evicted.
    pub(crate) fn eviction(&self) -> Result<u64> {
        quantity::bytes(&self.eviction_memory).context("evictionMemory")
    }

    /// Time between two renewals.
    pub(crate) const fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_seconds)
    }

    /// The engine that runs in place of an image.
    pub(crate) fn engine(&self, image: &str) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.image == image)
    }

    /// Where the certificates lie.
    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Where the pods' folders lie.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
}

impl Engine {
    fn check(&self) -> Result<()> {
        let flags = self.arguments.chunks(2);
        for pair in flags {
            ensure!(
                pair.len() == 2 && pair[0].starts_with("--"),
                "engines: {}: arguments: expected pairs of a flag and its value, found {:?}",
                self.image,
                self.arguments
            );
        }
        Ok(())
    }

    /// Asks the program which version it is.
    ///
    /// # Errors
    /// When it cannot be run, or is another version than the file says.
    pub(crate) fn verify(&self) -> Result<()> {
        let named = || format!("engines: {}: program {}", self.image, self.program.display());
        let output = std::process::Command::new(&self.program)
            .arg("--version")
            .output()
            .with_context(named)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let found = said.split_whitespace().nth(1).unwrap_or_default();
        ensure!(
            found == self.version,
            "{}: expected version {}, found {found:?}",
            named(),
            self.version
        );
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "
node: mac-1
address: 192.168.1.20
hostPathRoots: [/models]
engines:
- {image: 'registry.example/ds4:0.1.0', version: 0.1.0, program: /opt/ds4/0.1.0/ds4, arguments: [--backend, cpu]}
";

    pub(crate) fn config() -> Config {
        Config::parse(TEXT).expect("sound")
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = config();
        assert_eq!(
            (config.port, config.heartbeat().as_secs(), config.stand_in),
            (10250, 10, false)
        );
        assert!(config.engine("registry.example/ds4:0.1.0").is_some());
        assert!(config.engine("registry.example/ds4").is_none());
    }

    #[test]
    fn a_wrong_file_is_refused_by_the_field() {
        let cases = [
            (TEXT.replace("mac-1", "Mac 1"), "node"),
            (TEXT.replace("hostPathRoots", "hostPaths"), "hostPaths"),
            (TEXT.replace("[--backend, cpu]", "[cpu]"), "arguments"),
            (TEXT.replace("/models", "models"), "absolute"),
            (format!("{TEXT}evictionMemory: much\n"), "evictionMemory"),
        ];
        for (text, word) in cases {
            let error = format!("{:#}", Config::parse(&text).expect_err(word));
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn an_engine_of_another_version_is_not_run() {
        let engine = Engine {
            image: "x".into(),
            version: "9".into(),
            program: "/bin/echo".into(),
            arguments: Vec::new(),
        };
        let error = engine.verify().expect_err("echo is no engine").to_string();
        assert!(error.contains("expected version 9"), "{error}");
    }
}
