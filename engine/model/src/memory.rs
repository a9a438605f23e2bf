//! Whether a stage fits into this machine, before any of it is taken.

use std::path::{Path, PathBuf};

use ds4_gguf::tensors::check;
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};

use crate::graph::PASS;
use crate::{KvLayout, ModelError, Numerics};

/// What some layers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The layers.
    pub span: LayerSpan,
    /// Bytes of weights.
    pub weights: u64,
    /// Tokens of the longest session that is promised.
    pub tokens: u64,
    /// Bytes of that session's KV.
    pub kv: u64,
    /// Bytes of activations while a chunk goes through the layers.
    pub activations: u64,
}

impl Need {
    /// The need of `span` with one session of `tokens` tokens.
    ///
    /// # Errors
    /// When the file lacks a tensor of those layers or has another in its place.
    pub fn of(
        gguf: &Gguf,
        config: &ModelConfig,
        numerics: Numerics,
        span: LayerSpan,
        tokens: u64,
    ) -> Result<Self, ModelError> {
        let tensors = check(gguf, config, span)?;
        Ok(Self {
            span,
            weights: tensors.iter().map(|tensor| tensor.bytes).sum(),
            tokens,
            kv: KvLayout::new(config, numerics).bytes(span.layers(), tokens),
            activations: PASS as u64 * token_bytes(config),
        })
    }

    /// Bytes altogether.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.weights + self.kv + self.activations
    }

    /// Refuses what does not fit into `found`; without a figure nothing is refused.
    ///
    /// # Errors
    /// Names the parts of the need and what there is.
    pub fn check(&self, found: Option<Available>) -> Result<(), ModelError> {
        match found {
            Some(found) if found.bytes < self.bytes() => Err(ModelError::Memory { need: *self, found }),
            _ => Ok(()),
        }
    }
}

/// Bytes of activations that one token has at once: streams, queries, experts' inputs and outputs.
const fn token_bytes(config: &ModelConfig) -> u64 {
    let values = 2 * config.hidden_width()
        + 2 * config.n_head * config.head_dim
        + (config.n_used + 4) * config.n_embd
        + 2 * config.n_used * config.n_ff;
    4 * values as u64
}

/// Memory that this process can still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// How much.
    pub bytes: u64,
    /// What says so.
    pub limit: &'static str,
}

/// The smallest of the machine's free memory and what the process's cgroups leave. Cached file pages count as free: weights are mapped,
/// and those of an earlier run are there already. `None` where the system does not say.
#[must_use]
pub fn available() -> Option<Available> {
    available_in(Path::new("/"))
}

/// Bytes of the machine's free memory alone: a device that shares it takes its own from there, past the process's cgroups.
#[must_use]
pub fn of_machine() -> Option<u64> {
    of_machine_in(Path::new("/"))
}

fn of_machine_in(root: &Path) -> Option<u64> {
    let text = read(&root.join("proc/meminfo"))?;
    field(&text, "MemAvailable:").map(|kib| kib * 1024)
}

/// The same below another root, for tests.
fn available_in(root: &Path) -> Option<Available> {
    let machine = of_machine_in(root).map(|bytes| Available {
        bytes,
        limit: "free memory of the machine",
    });
    let groups = groups(root).into_iter().filter_map(|group| group.left());
    let group = groups.min().map(|bytes| Available {
        bytes,
        limit: "memory limit of the cgroup",
    });
    machine.into_iter().chain(group).min_by_key(|found| found.bytes)
}

/// One cgroup with the names of its files.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    used: &'static str,
    cached: [&'static str; 2],
}

impl Group {
    /// Limit less what is used and cannot be dropped.
    fn left(&self) -> Option<u64> {
        let number = |name: &str| read(&self.folder.join(name))?.trim().parse::<u64>().ok();
        let limit = number(self.limit)?;
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let cached: u64 = self.cached.iter().filter_map(|name| field(&stat, name)).sum();
        Some(limit.saturating_sub(number(self.used)?.saturating_sub(cached)))
    }
}

/// The process's memory cgroup of either version and all above it.
fn groups(root: &Path) -> Vec<Group> {
    let text = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    text.lines().flat_map(|line| group_line(root, line)).collect()
}

fn group_line(root: &Path, line: &str) -> Vec<Group> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (mount, limit, used, cached) = match controllers {
        "" => (
            "sys/fs/cgroup",
            "memory.max",
            "memory.current",
            ["inactive_file", "active_file"],
        ),
        names if names.split(',').any(|name| name == "memory") => (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ["total_inactive_file", "total_active_file"],
        ),
        _ => return Vec::new(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    let group = |path: &Path| Group {
        folder: root.join(mount).join(path),
        limit,
        used,
        cached,
    };
    path.ancestors().map(group).collect()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The number after `name` on its line.
fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    };
    text.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Option<(u64, &'static str)> {
        available_in(root(files).path()).map(|found| (found.bytes / MIB, found.limit))
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 2097152 kB\n");

    #[test]
    fn without_limits_the_machine_decides() {
        assert_eq!(found(&[MACHINE]), Some((2048, "free memory of the machine")));
        assert_eq!(found(&[]), None);
        let unlimited = [
            MACHINE,
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
        ];
        assert_eq!(found(&unlimited), Some((2048, "free memory of the machine")));
    }

    #[test]
    fn the_tightest_cgroup_above_the_process_decides_and_cached_files_are_free() {
        let second = [
            MACHINE,
            ("proc/self/cgroup", "0::/pods/one\n"),
            ("sys/fs/cgroup/pods/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/pods/memory.current", "838860800\n"),
            (
                "sys/fs/cgroup/pods/memory.stat",
                "anon 1\ninactive_file 104857600\nactive_file 104857600\n",
            ),
            ("sys/fs/cgroup/pods/one/memory.max", "max\n"),
        ];
        assert_eq!(
            found(&second),
            Some((1024 - 800 + 200, "memory limit of the cgroup"))
        );
        let first = [
            MACHINE,
            ("proc/self/cgroup", "7:cpu,memory:/pod\n3:pids:/pod\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "104857600\n"),
        ];
        assert_eq!(found(&first), Some((412, "memory limit of the cgroup")));
    }

    #[test]
    fn a_refusal_names_every_part() {
        let need = Need {
            span: LayerSpan {
                first: 0,
                last: 21,
                head: false,
            },
            weights: 41 << 30,
            tokens: 65_536,
            kv: 100 << 20,
            activations: 1 << 30,
        };
        let found = |bytes| {
            Some(Available {
                bytes,
                limit: "memory limit of the cgroup",
            })
        };
        assert!(need.check(None).is_ok() && need.check(found(need.bytes())).is_ok());
        let error = need.check(found(16 << 30)).expect_err("too little").to_string();
        for part in [
            "0:21",
            "44023414784 bytes of weights",
            "104857600 of KV for 65536 tokens",
            "17179869184",
            "cgroup",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
