//! Reading a run's output as `kubectl logs` asks for it.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc::Sender;

use crate::shim::{ENDED, OLDER, OUTPUT};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The query of the kubelet's log API (PodLogOptions).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) limit_bytes: Option<usize>,
    pub(crate) since_seconds: Option<i64>,
    pub(crate) since_time: Option<Timestamp>,
}

impl Options {
    fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let ago = self
            .since_seconds
            .map(|seconds| now - SignedDuration::from_secs(seconds));
        self.since_time.or(ago)
    }
}

/// Time and stream stripped off a kept line.
pub(crate) fn text(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}

/// Turns kept lines into what is asked for.
struct Cut {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<usize>,
}

impl Cut {
    /// What is sent of a kept line, which ends with a line feed; none when it is too old.
    fn line(&mut self, line: &str) -> Option<Vec<u8>> {
        let mut fields = line.splitn(4, ' ');
        let (time, _, whole, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if let Some(since) = self.since
            && time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return None;
        }
        // A part of a longer line has no end of its own.
        let text = if whole == "P" {
            text.trim_end_matches('\n')
        } else {
            text
        };
        let mut out = if self.timestamps {
            format!("{time} {text}").into_bytes()
        } else {
            text.as_bytes().to_vec()
        };
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        Some(out)
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Sends a run's output; ends with the run, or when nobody listens any more.
///
/// # Errors
/// When the run has no output.
pub(crate) async fn send(folder: PathBuf, options: Options, to: Sender<Vec<u8>>) -> Result<()> {
    let mut cut = Cut {
        since: options.since(Timestamp::now()),
        timestamps: options.timestamps,
        left: options.limit_bytes,
    };
    let mut file = open(&folder).await?;
    let mut skip = match options.tail_lines {
        Some(most) => lines(&folder).await?.saturating_sub(most),
        None => 0,
    };
    for line in older(&folder).await {
        if skip > 0 {
            skip -= 1;
        } else if !give(&mut cut, &line, &to).await {
            return Ok(());
        }
    }
    let mut line = String::new();
    loop {
        // A deleted pod's folder goes soon after its end.
        let over = folder.join(ENDED).exists() || !folder.is_dir();
        if file.read_line(&mut line).await? > 0 && line.ends_with('\n') {
            if skip > 0 {
                skip -= 1;
            } else if !give(&mut cut, &line, &to).await {
                return Ok(());
            }
            line.clear();
            continue;
        }
        if !options.follow || over || to.is_closed() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        if rotated(&mut file, &folder).await? {
            line.clear();
            file = open(&folder).await?;
        }
    }
}

/// Whether more can be sent.
async fn give(cut: &mut Cut, line: &str, to: &Sender<Vec<u8>>) -> bool {
    match cut.line(line) {
        Some(bytes) => to.send(bytes).await.is_ok() && !cut.is_full(),
        None => !to.is_closed(),
    }
}

async fn open(folder: &Path) -> Result<BufReader<File>> {
    let path = folder.join(OUTPUT);
    let file = File::open(&path).await.context("it has not said anything yet")?;
    Ok(BufReader::new(file))
}

/// Lines before the last rotation.
async fn older(folder: &Path) -> Vec<String> {
    let text = tokio::fs::read_to_string(folder.join(OLDER))
        .await
        .unwrap_or_default();
    text.lines().map(|line| format!("{line}\n")).collect()
}

async fn lines(folder: &Path) -> Result<usize> {
    let text = tokio::fs::read(folder.join(OUTPUT)).await?;
    let newer = text.iter().filter(|byte| **byte == b'\n').count();
    Ok(newer + older(folder).await.len())
}

/// Whether another file has taken the name, and this one was read to its end.
async fn rotated(file: &mut BufReader<File>, folder: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Ok(named) = tokio::fs::metadata(folder.join(OUTPUT)).await else {
        return Ok(false);
    };
    let own = file.get_ref().metadata().await?;
    let read = file.seek(SeekFrom::Current(0)).await?;
    Ok(named.ino() != own.ino() && read >= own.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: &str = "2026-01-01T00:00:00.000000000Z stdout F one\n2026-01-01T00:00:10.000000000Z stderr F two\n2026-01-01T00:00:20.000000000Z stdout P thr\n2026-01-01T00:00:20.000000000Z stdout F ee\n";

    async fn read(options: Options) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(OUTPUT), KEPT).expect("written");
        let (to, mut from) = tokio::sync::mpsc::channel(16);
        send(folder.path().to_owned(), options, to).await.expect("sent");
        let mut all = Vec::new();
        while let Some(bytes) = from.recv().await {
            all.extend(bytes);
        }
        String::from_utf8(all).expect("text")
    }

    #[tokio::test]
    async fn a_log_is_what_was_said() {
        assert_eq!(read(Options::default()).await, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn a_tail_a_limit_a_time_and_time_stamps_are_kept_to() {
        let tail = Options {
            tail_lines: Some(3),
            ..Options::default()
        };
        assert_eq!(read(tail).await, "two\nthree\n");
        let limit = Options {
            limit_bytes: Some(5),
            ..Options::default()
        };
        assert_eq!(read(limit).await, "one\nt");
        let since = Options {
            since_time: "2026-01-01T00:00:10Z".parse().ok(),
            ..Options::default()
        };
        assert_eq!(read(since).await, "two\nthree\n");
        let stamped = Options {
            timestamps: true,
            tail_lines: Some(4),
            ..Options::default()
        };
        assert!(
            read(stamped)
                .await
                .starts_with("2026-01-01T00:00:00.000000000Z one\n")
        );
        let recent = Options {
            since_seconds: Some(60),
            ..Options::default()
        };
        assert_eq!(read(recent).await, "");
    }

    #[tokio::test]
    async fn a_followed_log_goes_over_a_rotation_and_ends_with_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, older) = (folder.path().join(OUTPUT), folder.path().join(OLDER));
        std::fs::write(&log, KEPT).expect("written");
        let (to, mut from) = tokio::sync::mpsc::channel(16);
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let sent = tokio::spawn(send(folder.path().to_owned(), options, to));
        for expected in ["one\n", "two\n", "thr", "ee\n"] {
            assert_eq!(from.recv().await.expect("a line"), expected.as_bytes());
        }
        std::fs::rename(&log, &older).expect("rotated");
        std::fs::write(&log, "2026-01-01T00:00:30.000000000Z stdout F four\n").expect("written");
        assert_eq!(from.recv().await.expect("a line"), b"four\n");
        std::fs::write(folder.path().join(ENDED), "{}").expect("written");
        assert_eq!(from.recv().await, None);
        sent.await.expect("no panic").expect("sent");
    }

    #[tokio::test]
    async fn a_followed_log_ends_when_its_pod_is_taken_away() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(OUTPUT), KEPT).expect("written");
        let (to, mut from) = tokio::sync::mpsc::channel(16);
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let sent = tokio::spawn(send(folder.path().to_owned(), options, to));
        for _ in 0..4 {
            assert!(from.recv().await.is_some());
        }
        folder.close().expect("removed");
        assert_eq!(from.recv().await, None);
        sent.await.expect("no panic").expect("sent");
    }
}
