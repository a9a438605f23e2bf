//! The whole job, step by step.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ds4_gguf::{Gguf, GgufError, LayerSpan, ModelConfig};
use futures::{Stream, StreamExt};

use crate::journal::{self, Identity};
use crate::manifest::digest;
use crate::pieces::Pieces;
use crate::remote::{Opening, Remote, is_sha256};
use crate::target::{Opened, Target, ensure_space};
use crate::transfer::{Patience, Transfer};
use crate::{Access, FetchError, Manifest, Phase, Progress, Source};

/// What the first request asks for; headers of small models fit.
const START: u64 = 1 << 20;
/// A header beyond this is no model's: Flash's, with its vocabulary, takes about 5 MiB.
const MOST_HEADER: u64 = 256 << 20;

/// What is fetched, and how.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// `A:B` as a stage computes them; `N:output` takes the whole file.
    pub layers: String,
    /// Where the file goes.
    pub folder: PathBuf,
    /// Its name there.
    pub file: String,
    /// SHA-256 of the whole file.
    pub sha256: Option<String>,
    /// Hashes of its pieces.
    pub manifest: Option<Manifest>,
    /// Requests at once.
    pub parallel: usize,
    /// Attempts without a byte before giving up.
    pub retries: u32,
    /// Longest silence of a connection.
    pub stall: Duration,
}

/// What was verified of the bytes that are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The whole file's SHA-256.
    Sha256(String),
    /// The SHA-256 of every piece, against a manifest.
    Pieces,
    /// Lengths, the server's `ETag` and the header: nothing ties the content to anyone's word.
    Transport,
}

impl std::fmt::Display for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256 {digest} of the whole file"),
            Self::Pieces => write!(f, "sha256 of every piece, against the manifest"),
            Self::Transport => write!(
                f,
                "length, ETag and header only: no sha256 can be compared (a part of the file needs --pieces)"
            ),
        }
    }
}

/// A model that is here.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the wanted layers.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub length: u64,
    /// What was verified.
    pub verified: Verified,
}

/// Brings the wanted layers of `source` into the folder and returns when they are complete, verified as far as can be, and published.
///
/// # Errors
/// With what was expected and found, and what helps; what has arrived by then stays for the next attempt.
pub async fn fetch(
    source: &Source,
    access: &Access,
    options: &FetchOptions,
    progress: &Progress,
) -> Result<Fetched, FetchError> {
    let expected = options.sha256.as_deref();
    if let Some(found) = expected.filter(|found| !is_sha256(found)) {
        return Err(FetchError::unexpected("--sha256", "64 hex digits", found));
    }
    let target =
        tokio::task::block_in_place(|| Target::lock(&options.folder, &options.file, &|| waits(progress)))?;
    progress.enter(Phase::Connecting);
    let remote = Remote::new(source, access, options.stall)?;
    let job = Job {
        remote: &remote,
        target: &target,
        options,
        progress,
    };
    if let Some(identity) = job.pinned(source) {
        return job.complete(&identity, target.open(&identity)?).await;
    }
    let opening = job.patiently(|| remote.open(START)).await?;
    job.announced(&opening.identity)?;
    let identity = opening.identity.clone();
    let opened = target.open(&identity)?;
    if opening.ranges {
        job.complete(&identity, opened).await
    } else {
        job.whole(&identity, opened, opening).await
    }
}

fn waits(progress: &Progress) {
    progress.enter(Phase::Waiting);
    tracing::info!("another process fetches this file: waiting for it");
}

struct Job<'a> {
    remote: &'a Remote,
    target: &'a Target,
    options: &'a FetchOptions,
    progress: &'a Progress,
}

impl Job<'_> {
    /// The identity of what is here already, when source or digest pin it: then nobody need be asked whether it changed.
    fn pinned(&self, source: &Source) -> Option<Identity> {
        let (identity, _) = journal::read(&crate::target::journal_of(&self.target.path))?;
        let same = identity.source == source.shown();
        let digest = self.options.sha256.is_some() && identity.sha256 == self.options.sha256;
        (same && (source.commit.is_some() || digest)).then_some(identity)
    }

    async fn patiently<T, F: Future<Output = Result<T, FetchError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, FetchError> {
        let mut patience = Patience::new(self.options.retries);
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.wait(self.remote, error, self.progress).await?,
            }
        }
    }

    /// The digest that the hub announces must be the one asked for.
    fn announced(&self, identity: &Identity) -> Result<(), FetchError> {
        match (&self.options.sha256, &identity.sha256) {
            (Some(expected), Some(found)) if !expected.eq_ignore_ascii_case(found) => {
                Err(FetchError::Digest {
                    what: "the file, as announced by its source".into(),
                    expected: expected.clone(),
                    found: found.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Fetches what is missing by ranges.
    async fn complete(&self, identity: &Identity, mut opened: Opened) -> Result<Fetched, FetchError> {
        let gguf = self.header(identity, &opened).await?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let span = LayerSpan::parse(&self.options.layers, config.n_layer)?;
        let pieces = Pieces::of(&gguf);
        if let Some(manifest) = &self.options.manifest {
            manifest.fits(&pieces)?;
        }
        let wanted = pieces.wanted(&gguf, &config, span)?;
        self.progress.expect(pieces.bytes(&wanted));
        self.progress.enter(Phase::Checking);
        let there = self.there(&opened, &pieces, &wanted);
        let missing: Vec<bool> = wanted
            .iter()
            .zip(&there)
            .map(|(wanted, there)| *wanted && !there)
            .collect();
        ensure_space(&opened.path, pieces.bytes(&missing))?;
        self.progress.enter(Phase::Fetching);
        let (file, path) = (
            Arc::new(opened.file.try_clone().map_err(FetchError::io(&opened.path))?),
            opened.path.clone(),
        );
        let journal = Mutex::new(opened.journal);
        let transfer = Transfer {
            remote: self.remote,
            identity,
            pieces: &pieces,
            manifest: self.options.manifest.as_ref(),
            path: &path,
            file: &file,
            journal: &journal,
            progress: self.progress,
            retries: self.options.retries,
        };
        transfer.run(&missing, self.options.parallel.max(1)).await?;
        opened.journal = journal
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let whole = wanted.iter().all(|wanted| *wanted);
        let verified = self.verify(identity, &opened, whole)?;
        self.publish(&opened, pieces.bytes(&wanted), verified)
    }

    /// Pieces of earlier runs that are still what they were; with a manifest they must also be what it says.
    fn there(&self, opened: &Opened, pieces: &Pieces, wanted: &[bool]) -> Vec<bool> {
        let mut there = tokio::task::block_in_place(|| {
            journal::present(&opened.file, pieces, &opened.recorded, wanted, &mut |bytes| {
                self.progress.add(bytes)
            })
        });
        if let Some(manifest) = &self.options.manifest {
            tokio::task::block_in_place(|| {
                for (i, there) in there.iter_mut().enumerate() {
                    *there = *there && manifest_holds(manifest, opened, pieces, i);
                }
            });
            self.progress.expect(pieces.bytes(wanted));
            self.progress.add(pieces.bytes(&there));
        }
        there
    }

    /// Writes the header into the file, so that it can be opened as the model that it will be.
    async fn header(&self, identity: &Identity, opened: &Opened) -> Result<Gguf, FetchError> {
        let mut bytes = START.min(identity.length);
        loop {
            let start = self.patiently(|| self.start(identity, opened, bytes)).await?;
            match Gguf::header_length(&start, identity.length) {
                Ok(_) => {
                    opened
                        .file
                        .write_all_at(&start, 0)
                        .map_err(FetchError::io(&opened.path))?;
                    return Ok(Gguf::open(&opened.path)?);
                }
                Err(error @ (GgufError::Magic { .. } | GgufError::Version { .. })) => {
                    return Err(error.into());
                }
                Err(error) if bytes >= identity.length.min(MOST_HEADER) => return Err(error.into()),
                Err(_) => bytes = (bytes * 4).min(identity.length).min(MOST_HEADER),
            }
        }
    }

    /// The first `bytes` bytes: from disk when an earlier run recorded the header, else from the source.
    async fn start(&self, identity: &Identity, opened: &Opened, bytes: u64) -> Result<Vec<u8>, FetchError> {
        if opened.recorded.iter().any(|(piece, _)| *piece == 0)
            && let Ok(gguf) = Gguf::open(&opened.path)
        {
            let header = &Pieces::of(&gguf).all[0];
            let mut start = vec![0; usize::try_from(header.end).unwrap_or(0)];
            opened
                .file
                .read_exact_at(&mut start, 0)
                .map_err(FetchError::io(&opened.path))?;
            if opened.recorded.contains(&(0, crc_fast::crc32_iscsi(&start))) {
                return Ok(start);
            }
        }
        let body = self.remote.range(identity, &(0..bytes)).await?;
        collect(body, bytes).await
    }

    /// The file as an earlier run left it, when that was all of it and nothing of it has changed.
    fn kept(&self, identity: &Identity, opened: &Opened) -> Result<Option<Fetched>, FetchError> {
        let Some(gguf) = Gguf::open(&opened.path)
            .ok()
            .filter(|_| !opened.recorded.is_empty())
        else {
            return Ok(None);
        };
        let pieces = Pieces::of(&gguf);
        let wanted = vec![true; pieces.all.len()];
        self.progress.expect(identity.length);
        self.progress.enter(Phase::Checking);
        if self.there(opened, &pieces, &wanted) != wanted {
            return Ok(None);
        }
        let verified = self.verify(identity, opened, true)?;
        self.publish(opened, identity.length, verified).map(Some)
    }

    /// Takes a file whose server sends no ranges: from the start, in one go, again from the start when it breaks.
    async fn whole(
        &self,
        identity: &Identity,
        mut opened: Opened,
        opening: Opening,
    ) -> Result<Fetched, FetchError> {
        if let Some(fetched) = self.kept(identity, &opened)? {
            return Ok(fetched);
        }
        tracing::warn!("the source sends no byte ranges: the whole file is taken, and a break starts over");
        self.progress.enter(Phase::Fetching);
        ensure_space(&opened.path, identity.length)?;
        let mut patience = Patience::new(self.options.retries);
        let mut opening = Some(opening);
        loop {
            let next = match opening.take() {
                Some(opening) => Ok(opening),
                None => self.remote.open(START).await,
            };
            let error = match next {
                Ok(again) if again.identity != *identity => {
                    let (expected, found) = (format!("{identity:?}"), format!("{:?}", again.identity));
                    return Err(FetchError::Changed {
                        name: "identity",
                        expected,
                        found,
                    });
                }
                Ok(again) => match self.pour(identity, &opened, again).await {
                    Ok(()) => break,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            patience.wait(self.remote, error, self.progress).await?;
        }
        let gguf = Gguf::open(&opened.path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        LayerSpan::parse(&self.options.layers, config.n_layer)?;
        let pieces = Pieces::of(&gguf);
        self.record(&mut opened, &pieces)?;
        let verified = self.verify(identity, &opened, true)?;
        self.publish(&opened, identity.length, verified)
    }

    async fn pour(&self, identity: &Identity, opened: &Opened, opening: Opening) -> Result<(), FetchError> {
        self.progress.expect(identity.length);
        let body = opening.body();
        let (mut body, mut offset) = (std::pin::pin!(body), 0);
        while let Some(part) = body.next().await {
            let part = part?;
            opened
                .file
                .write_all_at(&part, offset)
                .map_err(FetchError::io(&opened.path))?;
            offset += part.len() as u64;
            self.progress.add(part.len() as u64);
        }
        if offset == identity.length {
            return Ok(());
        }
        Err(FetchError::transient(format!(
            "expected {} bytes, found {offset}",
            identity.length
        )))
    }

    /// Records every piece of a file that came as a whole.
    fn record(&self, opened: &mut Opened, pieces: &Pieces) -> Result<(), FetchError> {
        if let Some(manifest) = &self.options.manifest {
            manifest.fits(pieces)?;
        }
        let mut buffer = Vec::new();
        for (i, piece) in pieces.all.iter().enumerate() {
            buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX), 0);
            opened
                .file
                .read_exact_at(&mut buffer, piece.start)
                .map_err(FetchError::io(&opened.path))?;
            if let Some(manifest) = &self.options.manifest {
                manifest.check(i, &buffer)?;
            }
            opened.journal.record(&[(i, crc_fast::crc32_iscsi(&buffer))])?;
        }
        Ok(())
    }

    /// Compares the whole file's digest where the whole file is here and someone's word for it is known.
    fn verify(&self, identity: &Identity, opened: &Opened, whole: bool) -> Result<Verified, FetchError> {
        let manifest = self.options.manifest.as_ref();
        let own = self
            .options
            .sha256
            .as_ref()
            .map(|digest| digest.to_ascii_lowercase());
        if let (Some(expected), Some(found)) = (&own, manifest.map(|manifest| &manifest.sha256))
            && expected != found
        {
            return Err(FetchError::Digest {
                what: "the file, as the manifest has it".into(),
                expected: expected.clone(),
                found: found.clone(),
            });
        }
        let expected = own.or_else(|| identity.sha256.clone()).filter(|_| whole);
        let Some(expected) = expected else {
            return Ok(if manifest.is_some() {
                Verified::Pieces
            } else {
                Verified::Transport
            });
        };
        self.progress.enter(Phase::Verifying);
        let found = tokio::task::block_in_place(|| digest(&opened.path, &mut |_| {}))?;
        if found == expected {
            return Ok(Verified::Sha256(found));
        }
        Target::discard(opened);
        Err(FetchError::Digest {
            what: "the whole file".into(),
            expected,
            found,
        })
    }

    fn publish(&self, opened: &Opened, bytes: u64, verified: Verified) -> Result<Fetched, FetchError> {
        tokio::task::block_in_place(|| self.target.publish(opened))?;
        self.progress.finish(verified.to_string());
        let length = opened
            .file
            .metadata()
            .map_err(FetchError::io(&opened.path))?
            .len();
        Ok(Fetched {
            path: self.target.path.clone(),
            bytes,
            length,
            verified,
        })
    }
}

fn manifest_holds(manifest: &Manifest, opened: &Opened, pieces: &Pieces, i: usize) -> bool {
    let piece = &pieces.all[i];
    let mut bytes = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(0)];
    opened.file.read_exact_at(&mut bytes, piece.start).is_ok() && manifest.check(i, &bytes).is_ok()
}

async fn collect(
    body: impl Stream<Item = Result<Bytes, FetchError>>,
    bytes: u64,
) -> Result<Vec<u8>, FetchError> {
    let mut all = Vec::new();
    let mut body = std::pin::pin!(body);
    while let Some(part) = body.next().await {
        all.extend_from_slice(&part?);
    }
    if all.len() as u64 == bytes {
        return Ok(all);
    }
    Err(FetchError::transient(format!(
        "expected {bytes} bytes, found {}",
        all.len()
    )))
}

/// Reads a manifest from a file or URL.
///
/// # Errors
/// When it cannot be read or is none.
pub async fn manifest(place: &str, access: &Access, stall: Duration) -> Result<Manifest, FetchError> {
    if !place.contains("://") {
        let path = Path::new(place);
        return Manifest::parse(&std::fs::read(path).map_err(FetchError::io(path))?);
    }
    let remote = Remote::new(&Source::parse(place, crate::DEFAULT_ENDPOINT)?, access, stall)?;
    let opening = remote.open(MOST_HEADER).await?;
    let length = opening.identity.length.min(MOST_HEADER);
    Manifest::parse(&collect(opening.body(), length).await?)
}
