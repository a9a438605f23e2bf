//! Missing pieces over several connections at once; a piece that arrives is checked, written and recorded.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, TryStreamExt};

use crate::journal::{Identity, Journal};
use crate::manifest::Manifest;
use crate::pieces::Pieces;
use crate::remote::Remote;
use crate::{FetchError, Progress};

/// Waits double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Attempts that brought nothing, and when to stop.
#[derive(Debug)]
pub(crate) struct Patience {
    most: u32,
    failed: u32,
}

impl Patience {
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, failed: 0 }
    }

    pub(crate) const fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt; an error that asking again does not help, and one too many, come back.
    pub(crate) async fn wait(
        &mut self,
        remote: &Remote,
        error: FetchError,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        let FetchError::Transient { cause, after } = error else {
            return Err(error);
        };
        self.failed += 1;
        if self.failed > self.most {
            return Err(FetchError::Connection {
                url: remote.shown(),
                cause,
                attempts: self.failed,
            });
        }
        progress.retry();
        let wait = after.unwrap_or_else(|| pause(self.failed)).min(LAST_WAIT);
        tracing::warn!(
            cause,
            attempt = self.failed,
            wait_ms = wait.as_millis(),
            "asked again"
        );
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Doubles, less up to a quarter by the clock's last digits, so that stages do not ask in step.
fn pause(failed: u32) -> Duration {
    let full = FIRST_WAIT.saturating_mul(1 << failed.saturating_sub(1).min(8));
    let digits = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_micros() % 256);
    full - full * digits / 1024
}

/// What one fetch moves, from where to where.
pub(crate) struct Transfer<'a> {
    pub(crate) remote: &'a Remote,
    pub(crate) identity: &'a Identity,
    pub(crate) pieces: &'a Pieces,
    pub(crate) manifest: Option<&'a Manifest>,
    pub(crate) path: &'a Path,
    pub(crate) file: &'a Arc<File>,
    pub(crate) journal: &'a Mutex<Journal>,
    pub(crate) progress: &'a Progress,
    /// Attempts without a byte before a request gives up.
    pub(crate) retries: u32,
}

impl Transfer<'_> {
    /// Brings every missing piece.
    pub(crate) async fn run(&self, missing: &[bool], parallel: usize) -> Result<(), FetchError> {
        let requests = self.pieces.requests(missing);
        futures::stream::iter(requests)
            .map(|request| self.request(request))
            .buffer_unordered(parallel)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await
    }

    async fn request(&self, request: Range<usize>) -> Result<(), FetchError> {
        let (mut next, mut patience, mut wrong) = (request.start, Patience::new(self.retries), 0);
        while next < request.end {
            let before = next;
            let Err(error) = self.stream(&mut next, request.end).await else {
                return Ok(());
            };
            if next > before {
                patience.progressed();
            }
            match error {
                // Once may be the line's fault; twice is the source's.
                FetchError::Digest { .. } if wrong == 0 => {
                    wrong += 1;
                    self.progress.retry();
                }
                error => patience.wait(self.remote, error, self.progress).await?,
            }
        }
        Ok(())
    }

    /// Takes pieces off one answer, from `next` on, as long as it lasts.
    async fn stream(&self, next: &mut usize, end: usize) -> Result<(), FetchError> {
        let range = self.pieces.all[*next].start..self.pieces.all[end - 1].end;
        let body = self.remote.range(self.identity, &range).await?;
        let mut body = std::pin::pin!(body);
        let mut rest = Bytes::new();
        while *next < end {
            let piece = self.pieces.all[*next].clone();
            let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
            let bytes = take(&mut body, &mut rest, length).await?;
            self.keep(*next, piece.start, bytes).await?;
            *next += 1;
        }
        Ok(())
    }

    async fn keep(&self, piece: usize, offset: u64, bytes: Vec<u8>) -> Result<(), FetchError> {
        if let Some(manifest) = self.manifest {
            manifest.check(piece, &bytes)?;
        }
        let (file, length) = (Arc::clone(self.file), bytes.len() as u64);
        let write = move || {
            file.write_all_at(&bytes, offset)
                .map(|()| crc_fast::crc32_iscsi(&bytes))
        };
        let crc = tokio::task::spawn_blocking(write)
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(FetchError::io(self.path))?;
        self.journal
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .record(&[(piece, crc)])?;
        self.progress.add(length);
        Ok(())
    }
}

/// Exactly `length` bytes of a body.
async fn take(
    body: &mut (impl Stream<Item = Result<Bytes, FetchError>> + Unpin),
    rest: &mut Bytes,
    length: usize,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        if rest.is_empty() {
            let ended = || FetchError::transient("the connection ended early");
            *rest = body.next().await.ok_or_else(ended)??;
        }
        let part = rest.len().min(length - bytes.len());
        bytes.extend_from_slice(&rest[..part]);
        rest.advance(part);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let within = |failed, most: u64| {
            let (found, most) = (pause(failed), Duration::from_millis(most));
            assert!(found <= most && found >= most * 3 / 4, "{failed}: {found:?}");
        };
        within(1, 250);
        within(3, 1000);
        within(40, 64_000);
    }
}
