//! The hash of every piece of a file, made by someone who has it: with it even a part of a file is verified byte for byte.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ds4_gguf::Gguf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::FetchError;
use crate::pieces::{Pieces, STEP};

const VERSION: u32 = 1;

/// SHA-256 of a file and of its pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    ds4_manifest: u32,
    step: u64,
    /// Bytes of the file.
    pub length: u64,
    /// Of the whole file.
    pub sha256: String,
    /// Of each piece, in file order.
    pub pieces: Vec<String>,
}

impl Manifest {
    /// Hashes a file that is here as a whole. `progress(done, total)` in bytes.
    ///
    /// # Errors
    /// When it cannot be read or is no model file.
    pub fn of(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, FetchError> {
        crate::coverage::ensure_whole(path)?;
        let gguf = Gguf::open(path)?;
        let pieces = Pieces::of(&gguf);
        let file = std::fs::File::open(path).map_err(FetchError::io(path))?;
        let (mut whole, mut hashes, mut buffer) = (Sha256::new(), Vec::new(), Vec::new());
        for piece in &pieces.all {
            buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut buffer, piece.start)
                .map_err(FetchError::io(path))?;
            whole.update(&buffer);
            hashes.push(hex(&Sha256::digest(&buffer)));
            progress(piece.end, gguf.length());
        }
        Ok(Self {
            ds4_manifest: VERSION,
            step: STEP,
            length: gguf.length(),
            sha256: hex(&whole.finalize()),
            pieces: hashes,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(text: &[u8]) -> Result<Self, FetchError> {
        let wrong = |found: String| {
            FetchError::unexpected("--pieces", "what `ds4 fetch --manifest FILE` prints", found)
        };
        let manifest: Self = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if (manifest.ds4_manifest, manifest.step) != (VERSION, STEP) {
            return Err(wrong(format!(
                "version {}, step {}",
                manifest.ds4_manifest, manifest.step
            )));
        }
        Ok(manifest)
    }

    /// Whether it is of a file cut like this.
    pub(crate) fn fits(&self, pieces: &Pieces) -> Result<(), FetchError> {
        if (self.length, self.pieces.len()) == (pieces.length(), pieces.all.len()) {
            return Ok(());
        }
        let found = format!("{} bytes in {} pieces", self.length, self.pieces.len());
        Err(FetchError::unexpected(
            "--pieces",
            format!(
                "{} bytes in {} pieces, as the file at the source",
                pieces.length(),
                pieces.all.len()
            ),
            found,
        ))
    }

    /// Compares one piece.
    pub(crate) fn check(&self, piece: usize, bytes: &[u8]) -> Result<(), FetchError> {
        let (expected, found) = (&self.pieces[piece], hex(&Sha256::digest(bytes)));
        if *expected == found {
            return Ok(());
        }
        Err(FetchError::Digest {
            what: format!("piece {piece}"),
            expected: expected.clone(),
            found,
        })
    }
}

/// SHA-256 of a file. `progress(bytes)` as it is read.
pub(crate) fn digest(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<String, FetchError> {
    let file = std::fs::File::open(path).map_err(FetchError::io(path))?;
    let (mut digest, mut buffer, mut offset) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read_at(&mut buffer, offset).map_err(FetchError::io(path))?;
        if read == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..read]);
        offset += read as u64;
        progress(offset);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
