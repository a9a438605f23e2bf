//! A session's rows on their way to the output pod: built when they are computed, sent while the next ones are.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use ds4_model::Kv;
use ds4_proto::v1::{HandoffFrame, handoff_frame::Frame};
use futures::future::{join_all, select_all, try_join_all};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::session::Terms;
use crate::frames::{Sender, Work};

pub(crate) type Frames = mpsc::Sender<Result<HandoffFrame, Status>>;

/// Frames of a stream that are built at once: with their size this bounds what a slow output pod makes a session keep twice.
const BUILT: usize = 64;

/// One of the streams that share the layers.
struct Lane {
    sender: Sender,
    /// Built, and not sent yet.
    built: VecDeque<HandoffFrame>,
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

    /// Takes what `kv` has more of. Sends without waiting, since KV never delays activations; the rest goes [meanwhile](Self::meanwhile).
    pub(crate) fn offer(&mut self, kv: &Kv) {
        for lane in &mut self.lanes {
            if lane.built.is_empty() {
                let rows = std::iter::from_fn(|| lane.sender.next(kv));
                lane.built.extend(rows.take(BUILT));
                // A chunk that brought no rows is told of, so that nobody thinks the stage dead.
                if lane.built.is_empty() {
                    lane.built.push_back(Sender::beat(kv));
                }
            }
            while let Ok(place) = lane.frames.try_reserve() {
                let Some(frame) = lane.built.pop_front() else {
                    break;
                };
                place.send(Ok(frame));
            }
        }
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
    pub(crate) fn commits(&self, kv: &Kv, sent: &[u64], work: Work, span: &str) -> Vec<HandoffFrame> {
        let commits = self.lanes.iter().zip(sent).map(|(lane, sent)| {
            let work = Work {
                tail_bytes: lane.sender.bytes() - sent,
                ..work
            };
            lane.sender.commit(kv, &work, span.to_owned())
        });
        commits.collect()
    }

    pub(crate) async fn commit(&self, commits: Vec<HandoffFrame>) -> Result<(), Status> {
        for (commit, lane) in commits.into_iter().zip(&self.lanes) {
            lane.committed.cancel();
            hand(&lane.frames, commit, self.timeout).await?;
        }
        Ok(())
    }
}

impl Lane {
    fn sent(&self) -> u64 {
        let waiting = self.built.iter().map(|frame| match &frame.frame {
            Some(Frame::Rows(rows)) => rows.data.len() as u64,
            _ => 0,
        });
        self.sender.bytes() - waiting.sum::<u64>()
    }
}

async fn hand(frames: &Frames, frame: HandoffFrame, timeout: Duration) -> Result<(), Status> {
    match tokio::time::timeout(timeout, frames.send(Ok(frame))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("handoff: the output pod left")),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "handoff: the output pod took nothing within {timeout:?}"
        ))),
    }
}
