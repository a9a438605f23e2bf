//! What this machine is and has. Both systems' readers are compiled everywhere, so that both are tested everywhere.

mod linux;
mod macos;

use std::process::Command;

use serde::{Deserialize, Serialize};

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) total: u64,
    /// What a new process may take without harm to others.
    pub(crate) available: u64,
}

/// A process; the start tells it from a later one with the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Process id.
    pub(crate) pid: i32,
    /// When it started, in the system's own words.
    pub(crate) start: String,
}

impl Identity {
    /// The running process of that id.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let start = if cfg!(target_os = "macos") {
            macos::start(pid)
        } else {
            linux::start(pid)
        };
        start.map(|start| Self { pid, start })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal, to this process only; whether it was there.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> bool {
        let pid = rustix::process::Pid::from_raw(self.pid).filter(|_| self.is_alive());
        pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
    }

    /// Bytes of memory that only it holds; none when it is gone.
    pub(crate) fn memory(&self) -> Option<u64> {
        if cfg!(target_os = "macos") {
            macos::resident(self.pid)
        } else {
            linux::anonymous(self.pid)
        }
    }
}

/// This machine's memory, now.
///
/// # Errors
/// When the system does not say.
pub(crate) fn memory() -> anyhow::Result<Memory> {
    if cfg!(target_os = "macos") {
        macos::memory()
    } else {
        linux::memory()
    }
}

/// Processors.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A line of a program's output; empty when it cannot be had.
pub(crate) fn line_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// The system, as people call it.
pub(crate) fn system() -> String {
    if cfg!(target_os = "macos") {
        format!("macOS {}", line_of("sw_vers", &["-productVersion"]))
    } else {
        linux::system()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = i32::try_from(child.id()).expect("an id");
        let identity = Identity::of(pid).expect("it runs");
        let impostor = Identity {
            start: format!("{}0", identity.start),
            ..identity.clone()
        };
        assert!(identity.is_alive() && !impostor.is_alive());
        assert!(!impostor.signal(rustix::process::Signal::KILL) && identity.is_alive());
        assert!(identity.memory().is_some());
        assert!(identity.signal(rustix::process::Signal::KILL));
        child.wait().expect("it ends");
        assert!(!identity.is_alive());
    }

    #[test]
    fn there_is_memory() {
        let memory = memory().expect("the system says");
        assert!(memory.total >= memory.available && memory.available > 0);
    }
}
