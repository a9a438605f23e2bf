//! Other programs: run to their end, or started and remembered so that they, and only they, can be ended later.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Lines of a log that go into an error.
const TAIL_LINES: usize = 15;

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; then with the command and the end of what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", name(command)))?;
    if !result.status.success() {
        let said = [result.stdout, result.stderr].concat();
        bail!(
            "{} ended with {}:\n{}",
            line(command),
            result.status,
            tail(&String::from_utf8_lossy(&said))
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Runs a program to its end with what it says in the file `log`.
///
/// # Errors
/// When it cannot be started or fails; then with the end of the log.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = create(log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("starting {}", name(command)))?;
    if !status.success() {
        bail!(
            "{} ended with {status}; the end of {}:\n{}",
            line(command),
            log.display(),
            tail_of(log)
        );
    }
    Ok(())
}

/// Whether `program` can be found on the PATH.
#[must_use]
pub fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// Whether this process is root's.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A loopback address whose port was free just now.
///
/// # Errors
/// When no port is free.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("asking for a free port")?;
    Ok(listener.local_addr()?)
}

/// A process that was started here. The start time tells it from a later process with the same id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// What it is called in messages and in the log's file name.
    pub name: String,
    /// Process id.
    pub pid: i32,
    /// Start in clock ticks since boot, from `/proc/PID/stat`.
    pub start: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Started {
    /// Starts a program in its own process group, with its output in `folder/NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let pid = i32::try_from(child.id()).context("a process id beyond i32")?;
        let start = stat(pid).map_or(0, |(_, start)| start);
        Ok(Self {
            name: name.to_owned(),
            pid,
            start,
            log,
        })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| state != 'Z' && start == self.start)
    }

    /// An error with the end of its log when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        bail!(
            "{} has ended; the end of {}:\n{}",
            self.name,
            self.log.display(),
            tail_of(&self.log)
        )
    }

    /// Ends it: asks first, and after `patience` does not ask.
    pub fn end(&self, patience: Duration) {
        if !self.is_alive() {
            return;
        }
        let Some(pid) = Pid::from_raw(self.pid) else {
            return;
        };
        if !patience.is_zero() {
            // It may end between the look and the signal: nothing is lost then.
            let _ = kill_process(pid, Signal::TERM);
            if self.gone_within(patience) {
                return;
            }
        }
        let _ = kill_process(pid, Signal::KILL);
        self.gone_within(Duration::from_secs(5));
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.is_alive() {
            if start.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// State letter and start time of a process. The command's name may hold blanks and parentheses: cut after the last.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    // Field 22 of proc(5); the state is field 3.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

fn create(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    File::create(log).with_context(|| format!("creating {}", log.display()))
}

/// The end of a log file, for an error message.
#[must_use]
pub fn tail_of(log: &Path) -> String {
    tail(&std::fs::read_to_string(log).unwrap_or_default())
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let mut words = vec![name(command)];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_process_is_known_until_it_is_ended() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let sleep = Started::spawn("sleep", Command::new("sleep").arg("60"), folder.path())?;
        assert!(sleep.is_alive());
        let impostor = Started {
            start: sleep.start + 1,
            ..sleep.clone()
        };
        assert!(!impostor.is_alive(), "another start time is another process");
        impostor.end(Duration::ZERO);
        assert!(sleep.is_alive(), "only the recorded process is ended");
        sleep.end(Duration::from_secs(5));
        assert!(!sleep.is_alive());
        assert!(sleep.check().is_err());
        Ok(())
    }

    #[test]
    fn a_failing_program_is_named_with_what_it_said() {
        let error =
            output(Command::new("sh").args(["-c", "echo lost >&2; exit 3"])).map_err(|e| e.to_string());
        let text = error.err().unwrap_or_default();
        assert!(text.contains("lost") && text.contains("sh -c"), "{text}");
    }
}
