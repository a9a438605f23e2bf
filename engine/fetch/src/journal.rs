//! What was fetched, piece by piece, beside the file: one line each, appended when the piece's bytes are written.
//!
//! A line is believed only as far as its checksum: on the next start the bytes are read back and compared, so a lost page, a torn line or a
//! damaged disk costs the piece and nothing else.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::FetchError;
use crate::pieces::{Pieces, STEP};

/// Which file the pieces are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// URL without its query.
    pub(crate) source: String,
    /// Bytes.
    pub(crate) length: u64,
    /// The server's name for the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    /// SHA-256 that the hub announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    ds4_pieces: u32,
    step: u64,
    #[serde(flatten)]
    identity: Identity,
}

const VERSION: u32 = 1;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts an empty one.
    pub(crate) fn create(path: &Path, identity: &Identity) -> Result<Self, FetchError> {
        let head = Head {
            ds4_pieces: VERSION,
            step: STEP,
            identity: identity.clone(),
        };
        let mut line = serde_json::to_string(&head).unwrap_or_default();
        line.push('\n');
        std::fs::write(path, line).map_err(FetchError::io(path))?;
        Self::append_to(path)
    }

    /// Goes on with one that exists.
    pub(crate) fn append_to(path: &Path) -> Result<Self, FetchError> {
        let mut file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(FetchError::io(path))?;
        // A line that was cut short by a kill must not swallow the next one.
        file.write_all(b"\n").map_err(FetchError::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Records pieces with the CRC-32C of their bytes.
    pub(crate) fn record(&mut self, done: &[(usize, u32)]) -> Result<(), FetchError> {
        let lines: String = done
            .iter()
            .map(|(piece, crc)| format!("{piece} {crc:08x}\n"))
            .collect();
        self.file
            .write_all(lines.as_bytes())
            .map_err(FetchError::io(&self.path))
    }
}

/// What a journal says: which file, and the checksum of every recorded piece. `None` when there is none, or none of this version.
pub(crate) fn read(path: &Path) -> Option<(Identity, Vec<(usize, u32)>)> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let head: Head = serde_json::from_str(lines.next()?).ok()?;
    if (head.ds4_pieces, head.step) != (VERSION, STEP) {
        return None;
    }
    let piece = |line: &str| {
        let (piece, crc) = line.split_once(' ')?;
        // Eight digits or it was cut short.
        let crc = (crc.len() == 8).then(|| u32::from_str_radix(crc, 16).ok())??;
        Some((piece.parse().ok()?, crc))
    };
    Some((head.identity, lines.filter_map(piece).collect()))
}

/// Which pieces are there: recorded, `needed`, and with the recorded checksum on disk. `seen(bytes)` as they are read back.
pub(crate) fn present(
    file: &File,
    pieces: &Pieces,
    recorded: &[(usize, u32)],
    needed: &[bool],
    seen: &mut dyn FnMut(u64),
) -> Vec<bool> {
    let mut crcs: Vec<Option<u32>> = vec![None; pieces.all.len()];
    for (piece, crc) in recorded {
        if let Some(place) = crcs.get_mut(*piece) {
            *place = Some(*crc);
        }
    }
    let mut buffer = Vec::new();
    let mut holds = |i: usize| {
        let Some(expected) = crcs[i].filter(|_| needed[i]) else {
            return false;
        };
        let good = checksum(file, &pieces.all[i], &mut buffer).is_ok_and(|found| found == expected);
        if good {
            seen(pieces.all[i].end - pieces.all[i].start);
        }
        good
    };
    (0..pieces.all.len()).map(&mut holds).collect()
}

fn checksum(file: &File, piece: &Range<u64>, buffer: &mut Vec<u8>) -> std::io::Result<u32> {
    buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX), 0);
    file.read_exact_at(buffer, piece.start)?;
    Ok(crc_fast::crc32_iscsi(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            source: "https://host/f".into(),
            length: 30,
            etag: Some("\"a\"".into()),
            sha256: None,
        }
    }

    #[test]
    fn a_torn_line_is_forgotten_and_the_rest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        Journal::create(&path, &identity())
            .and_then(|mut journal| journal.record(&[(0, 1), (1, 2)]))
            .expect("written");
        let mut text = std::fs::read_to_string(&path).expect("text");
        text.push_str("2 0000"); // killed here
        std::fs::write(&path, text).expect("written");
        Journal::append_to(&path)
            .and_then(|mut journal| journal.record(&[(3, 4)]))
            .expect("appended");
        assert_eq!(read(&path), Some((identity(), vec![(0, 1), (1, 2), (3, 4)])));
    }

    #[test]
    fn only_bytes_with_the_recorded_checksum_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789abcdefghijABCDEFGHIJ").expect("written");
        let pieces = Pieces {
            all: vec![0..10, 10..20, 20..30],
        };
        let recorded = [
            (0, crc_fast::crc32_iscsi(b"0123456789")),
            (1, 7),
            (2, crc_fast::crc32_iscsi(b"ABCDEFGHIJ")),
            (9, 1),
        ];
        let mut seen = 0;
        let there = present(
            &File::open(&path).expect("open"),
            &pieces,
            &recorded,
            &[true, true, false],
            &mut |bytes| seen += bytes,
        );
        assert_eq!((there, seen), (vec![true, false, false], 10));
    }
}
