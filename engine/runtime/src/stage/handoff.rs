//! A session's rows on their way to the output pod: built when they are computed, sent while the next ones are.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use ds4_model::Kv;
use futures::future::{join_all, select_all, try_join_all};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::session::Terms;
use crate::frames::{Encoded, Sender, Work};

pub(crate) type Frames = mpsc::Sender<Result<Encoded, Status>>;

/// Bytes of a stream's rows that are built at once, to the last frame of them: what a slow output pod makes a session keep twice. Over two streams
/// it takes the rows of eight thousand tokens of Flash, so that a chunk's are on their way while the next one is computed.
const BUILT: usize = 8 << 20;

/// One of the streams that share the layers.
struct Lane {
    sender: Sender,
    /// Built, and not sent yet.
    built: VecDeque<Encoded>,
    frames: Frames,
    /// Cancelled when the commit goes out. The output pod may leave it from then on, while others still wait to be pulled.
    committed: CancellationToken,
}

/// All streams of a session.
pub(crate) struct Handoff {
    lanes: Vec<Lane>,
    timeout: Duration,
}

impl Handoff {
    pub(crate) fn new(terms: &Terms, frames: &[Frames]) -> Self {
        let lanes = terms.streams.iter().zip(frames).map(|(span, frames)| Lane {
            sender: Sender::new(terms.epoch, *span, terms.held, terms.tokens, terms.frame_bytes),
            built: VecDeque::new(),
            frames: frames.clone(),
            committed: CancellationToken::new(),
        });
        Self {
            lanes: lanes.collect(),
            timeout: terms.timeout,
        }
    }

    /// Resolves when a stream is dropped before its commit went out.
    pub(crate) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let dropped = self.lanes.iter().map(|lane| {
            let (frames, committed) = (lane.frames.clone(), lane.committed.clone());
            Box::pin(async move {
                frames.closed().await;
                if committed.is_cancelled() {
                    std::future::pending::<()>().await;
                }
            })
        });
        let dropped = select_all(dropped);
        async {
            dropped.await;
        }
    }

    /// Takes what `kv` has more of. Waits for nobody, since KV never delays activations; the rest goes [meanwhile](Self::meanwhile).
    pub(crate) async fn offer(&mut self, kv: &Kv) {
        join_all(self.lanes.iter_mut().map(|lane| lane.offer(kv))).await;
    }

    /// Does `work` while what was built goes out as places come free.
    pub(crate) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let going = self.lanes.iter_mut().map(|lane| async {
            while !lane.built.is_empty() {
                // Whether the output pod left is asked elsewhere.
                let Ok(place) = lane.frames.reserve().await else {
                    return;
                };
                if let Some(frame) = lane.built.pop_front() {
                    place.send(Ok(frame));
                }
            }
        });
        let gone = async {
            join_all(going).await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            done = work => done,
            never = gone => match never {},
        }
    }

    /// Bytes of rows that each stream has sent.
    pub(crate) fn sent(&self) -> Vec<u64> {
        self.lanes.iter().map(Lane::sent).collect()
    }

    /// All rows that are left.
    pub(crate) async fn rows(&mut self, kv: &Kv) -> Result<(), Status> {
        let timeout = self.timeout;
        let rows = self.lanes.iter_mut().map(|lane| async move {
            while let Some(frame) = lane.built.pop_front().or_else(|| lane.sender.next(kv)) {
                hand(&lane.frames, frame, timeout).await?;
            }
            Ok::<_, Status>(())
        });
        try_join_all(rows).await.map(drop)
    }

    /// What says that a shard is complete, for every stream: `work` is given what it had sent when the last chunk was computed.
    pub(crate) fn commits(&self, kv: &Kv, sent: &[u64], work: Work, span: &str) -> Vec<Encoded> {
        let commits = self.lanes.iter().zip(sent).map(|(lane, sent)| {
            let work = Work {
                tail_bytes: lane.sender.bytes() - sent,
                ..work
            };
            lane.sender.commit(kv, &work, span.to_owned())
        });
        commits.collect()
    }

    pub(crate) async fn commit(&self, commits: Vec<Encoded>) -> Result<(), Status> {
        for (commit, lane) in commits.into_iter().zip(&self.lanes) {
            lane.committed.cancel();
            hand(&lane.frames, commit, self.timeout).await?;
        }
        Ok(())
    }
}

impl Lane {
    async fn offer(&mut self, kv: &Kv) {
        self.push();
        if !self.built.is_empty() {
            return;
        }
        let begun = self.sender.bytes();
        while self.sender.bytes() < begun + BUILT as u64
            && let Some(frame) = self.sender.next(kv)
        {
            self.built.push_back(frame);
            self.push();
            // Whoever sends goes next: the frame is in a cache still.
            tokio::task::yield_now().await;
        }
        if self.sender.bytes() == begun {
            // A chunk that brought no rows is told of, so that nobody thinks the stage dead.
            self.built.push_back(Sender::beat(kv));
            self.push();
        }
    }

    /// Sends what there are places for.
    fn push(&mut self) {
        while let Ok(place) = self.frames.try_reserve()
            && let Some(frame) = self.built.pop_front()
        {
            place.send(Ok(frame));
        }
    }

    fn sent(&self) -> u64 {
        let waiting = self.built.iter().map(|frame| frame.rows as u64);
        self.sender.bytes() - waiting.sum::<u64>()
    }
}

async fn hand(frames: &Frames, frame: Encoded, timeout: Duration) -> Result<(), Status> {
    match tokio::time::timeout(timeout, frames.send(Ok(frame))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("handoff: the output pod left")),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "handoff: the output pod took nothing within {timeout:?}"
        ))),
    }
}
