//! `ds4-runner shim DIR`: the parent of one engine. It outlives the runner, so that an engine keeps its output, and its end is known.
//!
//! A folder of one run:
//! `launch.json` what to start (removed once read: it may hold secrets), `running.json` who runs, `output.log` what it says
//! (`TIME stdout|stderr F TEXT`, as other container runtimes write it), `ended.json` how it ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::host::Identity;

/// What to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) folder: PathBuf,
    /// User and group; none leaves the runner's own.
    pub(crate) user: Option<(u32, u32)>,
    /// Bytes of data that the kernel lets it take (Linux holds this; macOS does not, see docs/mac.md).
    pub(crate) data: Option<u64>,
}

/// Who runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) shim: Identity,
    pub(crate) engine: Identity,
    pub(crate) since: Timestamp,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Exit code; 128 and the signal's number where a signal ended it, as shells say it.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    /// Why it never ran.
    pub(crate) error: Option<String>,
    pub(crate) at: Timestamp,
}

pub(crate) const LAUNCH: &str = "launch.json";
pub(crate) const RUNNING: &str = "running.json";
pub(crate) const ENDED: &str = "ended.json";
pub(crate) const OUTPUT: &str = "output.log";
/// The output before the last rotation.
pub(crate) const OLDER: &str = "output.log.1";

/// Output is kept in two files of this size (the kubelet's containerLogMaxSize).
const ROTATE: u64 = 10 << 20;
/// A longer line is cut into parts.
const LINE: u64 = 16 << 10;
/// Files that an engine may have open: connections of many sessions.
const OPEN_FILES: u64 = 65536;
/// How shells number the exit of a program that cannot be run.
const CANNOT_RUN: i32 = 126;

/// Runs the engine of that folder to its end.
///
/// # Errors
/// When the folder cannot be read or written.
pub(crate) fn run(folder: &Path) -> Result<()> {
    let launch: Launch = files::read(&folder.join(LAUNCH))?.context("no launch.json")?;
    std::fs::remove_file(folder.join(LAUNCH))?;
    let ended = match start(folder, &launch) {
        Ok(ended) => ended,
        Err(error) => Ended {
            code: CANNOT_RUN,
            signal: None,
            error: Some(format!("{error:#}")),
            at: Timestamp::now(),
        },
    };
    files::write(&folder.join(ENDED), &ended)
}

fn start(folder: &Path, launch: &Launch) -> Result<Ended> {
    limit(launch)?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.args)
        .env_clear()
        .envs(&launch.env)
        .current_dir(&launch.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some((uid, gid)) = launch.user {
        command.uid(uid).gid(gid);
    }
    let log = Arc::new(Mutex::new(Log::open(folder)?));
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", launch.program.display()))?;
    let running = Running {
        shim: identity(std::process::id())?,
        engine: identity(child.id())?,
        since: Timestamp::now(),
    };
    files::write(&folder.join(RUNNING), &running)?;
    let copies = [
        child.stdout.take().map(|pipe| copy("stdout", pipe, &log)),
        child.stderr.take().map(|pipe| copy("stderr", pipe, &log)),
    ];
    let status = child.wait()?;
    for copy in copies.into_iter().flatten() {
        // A thread that panicked has lost lines; the end is told all the same.
        let _ = copy.join();
    }
    Ok(Ended {
        code: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        signal: status.signal(),
        error: None,
        at: Timestamp::now(),
    })
}

/// A child that has ended already still has its entry: nobody has waited for it.
fn identity(pid: u32) -> Result<Identity> {
    let pid = i32::try_from(pid).context("a process id beyond i32")?;
    Ok(Identity::of(pid).unwrap_or(Identity {
        pid,
        start: "ended".into(),
    }))
}

/// The child takes these over.
fn limit(launch: &Launch) -> Result<()> {
    let set = |resource, value: u64| {
        let maximum = getrlimit(resource)
            .maximum
            .map_or(value, |maximum| maximum.min(value));
        let limit = Rlimit {
            current: Some(maximum),
            maximum: Some(maximum),
        };
        setrlimit(resource, limit)
    };
    set(Resource::Core, 0).context("limiting core files")?;
    set(Resource::Nofile, OPEN_FILES).context("limiting open files")?;
    if let Some(bytes) = launch.data {
        set(Resource::Data, bytes).context("limiting memory")?;
    }
    Ok(())
}

/// The output's file, and how full it is.
struct Log {
    folder: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    fn open(folder: &Path) -> Result<Self> {
        let file = files::private(&folder.join(OUTPUT), true)?;
        Ok(Self {
            folder: folder.to_owned(),
            size: file.metadata()?.len(),
            file,
        })
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        if self.size > ROTATE {
            std::fs::rename(self.folder.join(OUTPUT), self.folder.join(OLDER))?;
            *self = Self::open(&self.folder)?;
        }
        self.file.write_all(line)?;
        self.size += u64::try_from(line.len())?;
        Ok(())
    }
}

fn copy(
    stream: &'static str,
    pipe: impl Read + Send + 'static,
    log: &Arc<Mutex<Log>>,
) -> std::thread::JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut text = Vec::new();
        loop {
            text.clear();
            match pipe.by_ref().take(LINE).read_until(b'\n', &mut text) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let whole = text.last() == Some(&b'\n');
            let mut line = format!(
                "{:.9} {stream} {} ",
                Timestamp::now(),
                if whole { "F" } else { "P" }
            )
            .into_bytes();
            line.extend_from_slice(&text);
            if !whole {
                line.push(b'\n');
            }
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk must not stop the engine: it would block on its own output.
            let _ = log.line(&line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(script: &str, data: Option<u64>) -> (tempfile::TempDir, Ended) {
        let folder = tempfile::tempdir().expect("a folder");
        let launch = Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            folder: folder.path().to_owned(),
            user: None,
            data,
        };
        let log = |folder: &Path| start(folder, &launch).expect("it runs");
        // Limits stay with the process that sets them: here only what every test process bears.
        let ended = log(folder.path());
        (folder, ended)
    }

    #[test]
    fn output_is_kept_line_by_line_with_times_and_the_end_is_told() {
        let (folder, ended) = runs("echo out $A; echo err >&2; printf rest; exit 3", None);
        assert_eq!((ended.code, ended.signal), (3, None));
        let text = std::fs::read_to_string(folder.path().join(OUTPUT)).expect("a log");
        for part in ["Z stdout F out 1\n", "Z stderr F err\n", "Z stdout P rest\n"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let running: Running = files::read(&folder.path().join(RUNNING))
            .expect("it was written")
            .expect("it is there");
        assert_eq!(
            running.shim.pid,
            i32::try_from(std::process::id()).expect("an id")
        );
    }

    #[test]
    fn a_signal_is_told_as_shells_do() {
        let (_folder, ended) = runs("kill -9 $$", None);
        assert_eq!((ended.code, ended.signal), (137, Some(9)));
    }

    #[test]
    fn a_program_that_is_missing_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let launch = Launch {
            program: "/missing".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            folder: folder.path().to_owned(),
            user: None,
            data: None,
        };
        files::write(&folder.path().join(LAUNCH), &launch).expect("written");
        run(folder.path()).expect("the end is told");
        let ended: Ended = files::read(&folder.path().join(ENDED))
            .expect("written")
            .expect("there");
        assert_eq!(ended.code, CANNOT_RUN);
        assert!(ended.error.expect("why").contains("/missing"));
        assert!(!folder.path().join(LAUNCH).exists(), "it may hold secrets");
    }
}
