//! One run of a container: started, found again after a restart of the runner, asked to stop, seen to end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::process::Signal;

use crate::facts::End;
use crate::folder::last_words;
use crate::host::Identity;
use crate::plan::ContainerPlan;
use crate::shim::{ENDED, Ended, LAUNCH, Launch, OUTPUT, RUNNING, Running};
use crate::{files, logs};

/// This program, as it was called: once another version lies in its place, the system would not name it any more.
pub(crate) static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// How often its end is looked for: a look is one question to the file system.
const LOOK: Duration = Duration::from_millis(200);
/// How often, in looks, the parent is seen to live and the memory is measured: macOS starts a process for either.
const INSPECT: u32 = 25;
/// Bytes of last words that a status may hold (the kubelet's limit), and lines of a log that stand in for them.
const WORDS: usize = 4096;
const LINES: usize = 80;

/// A run that is on.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    folder: PathBuf,
    pub(crate) running: Running,
}

impl Run {
    /// Starts it and waits until its process is there, or has failed to be.
    ///
    /// # Errors
    /// When the folder cannot be written or the parent cannot be started.
    pub(crate) async fn start(folder: &Path, launch: &Launch) -> Result<Self> {
        files::write(&folder.join(LAUNCH), launch)?;
        let program = PROGRAM.get().context("the runner's own program")?;
        let mut shim = tokio::process::Command::new(program)
            .arg("shim")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Signals to the runner's group are not for it.
            .process_group(0)
            .spawn()
            .context("starting the engine's parent")?;
        let pid = shim.id().and_then(|pid| i32::try_from(pid).ok());
        let shim_identity = pid.and_then(Identity::of);
        loop {
            if let Some(running) = files::read(&folder.join(RUNNING))? {
                // Whoever ends first, nobody may stay behind as a zombie.
                tokio::spawn(async move { shim.wait().await });
                return Ok(Self {
                    folder: folder.to_owned(),
                    running,
                });
            }
            if let Some(ended) = files::read::<Ended>(&folder.join(ENDED))? {
                let _ = shim.wait().await;
                anyhow::bail!(ended.error.unwrap_or_else(|| "it ended at once".into()));
            }
            if shim.try_wait()?.is_some() && !folder.join(RUNNING).exists() && !folder.join(ENDED).exists() {
                anyhow::bail!("the engine's parent {shim_identity:?} ended without a word");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The run in that folder, when there was one: it may have ended meanwhile.
    ///
    /// # Errors
    /// When the folder holds something else.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        let running = files::read(&folder.join(RUNNING))?;
        Ok(running.map(|running| Self {
            folder: folder.to_owned(),
            running,
        }))
    }

    /// Waits for its end. An engine that takes more memory than its limit is ended.
    pub(crate) async fn ended(&self, plan: &ContainerPlan) -> Result<End> {
        let mut looks = 0_u32;
        let mut too_much = None;
        loop {
            if let Some(ended) = files::read::<Ended>(&self.folder.join(ENDED))? {
                return Ok(self.end(plan, &ended, too_much));
            }
            if looks % INSPECT == INSPECT - 1 {
                if too_much.is_none() {
                    too_much = self.beyond(plan);
                }
                if !self.running.shim.is_alive() && !self.folder.join(ENDED).exists() {
                    return Ok(self.orphaned(plan));
                }
            }
            looks = looks.wrapping_add(1);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends an engine that is beyond its limit, and says by how much.
    fn beyond(&self, plan: &ContainerPlan) -> Option<String> {
        let (limit, taken) = (plan.memory?, self.running.engine.memory()?);
        (taken > limit).then(|| {
            self.running.engine.signal(Signal::KILL);
            format!("it took {taken} bytes of memory of its own, its limit is {limit}")
        })
    }

    /// Its parent is gone and cannot tell the end: the engine must not go on unseen.
    fn orphaned(&self, plan: &ContainerPlan) -> End {
        self.running.engine.signal(Signal::KILL);
        let ended = Ended {
            code: 137,
            signal: Some(9),
            error: Some("its parent process was lost, so it was ended".into()),
            at: Timestamp::now(),
        };
        // Whoever looks next finds the same.
        if let Err(error) = files::write(&self.folder.join(ENDED), &ended) {
            tracing::warn!(error = format!("{error:#}"), "an end was not written");
        }
        self.end(plan, &ended, None)
    }

    fn end(&self, plan: &ContainerPlan, ended: &Ended, too_much: Option<String>) -> End {
        let reason = match (&too_much, ended.code) {
            (Some(_), _) => "OOMKilled",
            (None, 0) => "Completed",
            (None, _) => "Error",
        };
        let words = too_much
            .or_else(|| ended.error.clone())
            .unwrap_or_else(|| self.words(plan, ended.code));
        End {
            code: ended.code,
            signal: ended.signal,
            reason: reason.into(),
            message: words,
            started: Some(self.running.since),
            finished: ended.at,
        }
    }

    /// What it wrote as its last words, or the end of its log where the pod asks for that.
    fn words(&self, plan: &ContainerPlan, code: i32) -> String {
        let written = std::fs::read_to_string(last_words(&self.folder)).unwrap_or_default();
        if !written.trim().is_empty() || code == 0 || !plan.last_words_from_log {
            return last_bytes(&written, WORDS);
        }
        let text = std::fs::read_to_string(self.folder.join(OUTPUT)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(logs::text).collect();
        last_bytes(&lines[lines.len().saturating_sub(LINES)..].join("\n"), WORDS)
    }

    /// Asks it to stop.
    pub(crate) fn ask_to_stop(&self) {
        self.running.engine.signal(Signal::TERM);
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        self.running.engine.signal(Signal::KILL);
    }

    /// Asks it to stop, and after `grace` does not ask; returns how it ended.
    pub(crate) async fn stop(&self, plan: &ContainerPlan, grace: Duration) -> Result<End> {
        self.ask_to_stop();
        if let Ok(end) = tokio::time::timeout(grace, self.ended(plan)).await {
            return end;
        }
        self.kill();
        self.ended(plan).await
    }
}

fn last_bytes(text: &str, most: usize) -> String {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_cut_at_a_letter() {
        assert_eq!(last_bytes("aé\n", 10), "aé");
        assert_eq!(last_bytes("aéb", 2), "b");
    }
}
