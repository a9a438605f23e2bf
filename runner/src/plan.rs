//! What an admitted pod comes to: processes, their environment, their folders, their probes. Pure.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EnvVar, Probe, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::admission::PROGRAM;
use crate::config::Engine;

/// A pod that runs here.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// One after another, before the engine.
    pub(crate) init: Vec<ContainerPlan>,
    /// The engine.
    pub(crate) main: ContainerPlan,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) restart: RestartPolicy,
    pub(crate) user: User,
    /// Seconds between the request to stop and the kill.
    pub(crate) grace: u64,
}

/// Whether an ended container starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(name: Option<&str>) -> Self {
        match name {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether the engine starts again after this exit code.
    pub(crate) const fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// Who owns the processes and the pod's folders, where the runner may choose (as root).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) fs_group: Option<u32>,
}

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) engine: Engine,
    /// In the container's paths, with references to variables.
    pub(crate) args: Vec<String>,
    /// What the node's configuration replaced.
    pub(crate) overridden: Option<String>,
    pub(crate) env: Vec<EnvVar>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) ports: Vec<u16>,
    pub(crate) probes: Probes,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Compute threads that a limit of processors comes to.
    pub(crate) threads: Option<u64>,
    /// Seconds to wait before it is asked to stop.
    pub(crate) pre_stop: u64,
    /// Where it writes its last words, in the container's paths.
    pub(crate) last_words: String,
    pub(crate) last_words_from_log: bool,
}

/// Where a volume appears in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) path: String,
    pub(crate) volume: String,
    pub(crate) sub_path: String,
}

/// When a container has started, lives, and may be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) startup: Option<PlannedProbe>,
    pub(crate) liveness: Option<PlannedProbe>,
    pub(crate) readiness: Option<PlannedProbe>,
}

/// A probe with the API's defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct PlannedProbe {
    pub(crate) check: Check,
    pub(crate) delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A status from 200 to 399 is healthy.
    Http {
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    /// The health protocol of gRPC.
    Grpc { port: u16, service: String },
    /// A connection.
    Tcp { port: u16 },
    /// The engine with these arguments; 0 is healthy.
    Exec(Vec<String>),
}

impl PlannedProbe {
    /// # Errors
    /// With what is not understood.
    pub(crate) fn of(probe: &Probe, container: &Container) -> Result<Self, String> {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value
                    .and_then(|value| u64::try_from(value).ok())
                    .unwrap_or(default),
            )
        };
        let count = |value: Option<i32>, default| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(default)
                .max(1)
        };
        Ok(Self {
            check: check(probe, container)?,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        })
    }
}

fn check(probe: &Probe, container: &Container) -> Result<Check, String> {
    if let Some(http) = &probe.http_get {
        if http.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") || http.host.is_some() {
            return Err("httpGet: expected plain HTTP to the pod itself".into());
        }
        let headers = http.http_headers.iter().flatten();
        return Ok(Check::Http {
            port: port(&http.port, container)?,
            path: http.path.clone().unwrap_or_else(|| "/".into()),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        });
    }
    if let Some(grpc) = &probe.grpc {
        return Ok(Check::Grpc {
            port: u16::try_from(grpc.port).map_err(|_| format!("grpc.port: {}", grpc.port))?,
            service: grpc.service.clone().unwrap_or_default(),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Check::Tcp {
            port: port(&tcp.port, container)?,
        });
    }
    let command = probe.exec.as_ref().and_then(|exec| exec.command.as_deref());
    match command {
        Some([program, arguments @ ..])
            if program == PROGRAM && arguments.first().is_some_and(|word| word == "health") =>
        {
            Ok(Check::Exec(arguments.to_vec()))
        }
        other => Err(format!(
            "exec: expected {PROGRAM} health ADDRESS, found {other:?}"
        )),
    }
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port)
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("no port {port:?}"))
}

/// From a container's paths to this machine's: there is no mount namespace here, so the words themselves change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    /// Longest first, so that a mount inside a mount wins.
    pairs: Vec<(String, PathBuf)>,
}

impl Paths {
    pub(crate) fn new(mut pairs: Vec<(String, PathBuf)>) -> Self {
        pairs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self { pairs }
    }

    /// The word with its path replaced: the whole word, or what follows `=`.
    pub(crate) fn word(&self, word: &str) -> String {
        if let Some(path) = self.path(word) {
            return path;
        }
        let value = word.split_once('=').and_then(|(flag, value)| {
            let path = self.path(value)?;
            Some(format!("{flag}={path}"))
        });
        value.unwrap_or_else(|| word.to_owned())
    }

    fn path(&self, word: &str) -> Option<String> {
        self.pairs.iter().find_map(|(from, to)| {
            let rest = word.strip_prefix(from.as_str())?;
            if rest.is_empty() {
                return Some(to.display().to_string());
            }
            let inside = rest.strip_prefix('/')?;
            Some(to.join(inside.trim_start_matches('/')).display().to_string())
        })
    }
}

/// Replaces `$(NAME)` by the variable's value, as Kubernetes does: an unknown one stays, `$$` is a dollar.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('$') {
        out.push_str(&rest[..place]);
        rest = &rest[place + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        match rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            Some((name, after)) => {
                match lookup(name) {
                    Some(value) => out.push_str(&value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_kubernetes_does() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("x-$(A).y", "x-1.y"),
            ("$(A)$(A)", "11"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $( $", "$A $( $"),
        ] {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    #[test]
    fn words_that_name_a_mount_name_the_folder_instead() {
        let paths = Paths::new(vec![
            ("/models".into(), "/p/models".into()),
            ("/models/cache".into(), "/cache".into()),
            ("/models/model.gguf".into(), "/data/flash.gguf".into()),
        ]);
        for (word, expected) in [
            ("/models/a.gguf", "/p/models/a.gguf"),
            ("/models", "/p/models"),
            ("/models/cache/b", "/cache/b"),
            ("/models/model.gguf", "/data/flash.gguf"),
            ("--model=/models/a.gguf", "--model=/p/models/a.gguf"),
            ("/modelsx/a", "/modelsx/a"),
            ("http://x/models/a", "http://x/models/a"),
        ] {
            assert_eq!(paths.word(word), expected);
        }
    }

    #[test]
    fn restart_policies_are_those_of_the_api() {
        use RestartPolicy::{Always, Never, OnFailure};
        assert_eq!(RestartPolicy::of(None), Always);
        let restarts = |code| [Always, OnFailure, Never].map(|policy| policy.restarts(code));
        assert_eq!(
            (restarts(0), restarts(1)),
            ([true, false, false], [true, true, false])
        );
    }
}
