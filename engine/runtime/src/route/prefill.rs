//! Driving one prompt through the route.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_model::{CompleteKv, Hidden, ModelSlice, TokenHash};
use ds4_proto::v1::{ActivationFrame, OpenReply, OpenRequest, SessionRequest};
use ds4_telemetry::propagation;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Code, Request, Streaming};
use tracing::{Instrument, Span};

use super::connect::{Hop, Route};
use super::handoff::{HandoffReport, Pull, pull};
use crate::RouteError;
use crate::chunk::Chunk;
use crate::compute::Compute;
use crate::engine::{Chunk as Piecewise, Flow, Member, Passes};
use crate::frames::{Assembler, Difference, token_chunk};
use crate::net;
use crate::planted::{self, Bug};
use crate::shards::Shards;
use crate::stage::retry_after;

/// How long a stage may take to take note of the end of a session; its lease ends it anyway.
const CLOSE: Duration = Duration::from_secs(5);

/// Called with every chunk that the output pod has computed: tokens done, and the chunk's streams. An error stops the prefill. Runs where the
/// model is computed.
pub(crate) type Progress = Arc<dyn Fn(u64, &Hidden) -> Result<(), RouteError> + Send + Sync>;

/// A prompt whose KV is complete.
#[derive(Debug)]
pub(crate) struct Prefilled {
    pub(crate) kv: CompleteKv,
    /// Streams of the last chunk.
    pub(crate) hidden: Hidden,
    pub(crate) handoffs: Vec<HandoffReport>,
    /// When the output pod had computed the last chunk.
    pub(crate) computed: Instant,
    /// The session as the stages hold it now.
    pub(crate) remote: Option<Remote>,
}

/// A session that stages hold.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    /// Where they stand, in tokens.
    pub(crate) frontier: u64,
    pub(crate) hops: Vec<Hop>,
    pub(crate) lease: Duration,
}

/// What an attempt works on.
pub(crate) struct Work {
    pub(crate) slice: Arc<dyn ModelSlice>,
    pub(crate) compute: Compute<Passes>,
    /// Whose request it is.
    pub(crate) flow: Flow,
    pub(crate) prompt: Arc<Vec<u32>>,
    /// What is held of the session, by the layers of [`Route::spans`].
    pub(crate) shards: Arc<Shards>,
    pub(crate) session: String,
    pub(crate) epoch: u64,
}

/// One attempt.
struct Attempt<'a> {
    route: &'a Route,
    work: Work,
    /// Tokens whose rows are held.
    held: usize,
}

/// Where the stages begin, and how long they keep what they make.
#[derive(Clone, Copy, Debug)]
struct Start {
    from: usize,
    lease: Duration,
}

impl Route {
    /// Prefills the prompt through the stages and the own layers; the parts of the session are then complete. Of a failed attempt nothing
    /// remains on the stages; the parts stand anywhere.
    pub(crate) async fn prefill(&self, work: Work, progress: Progress) -> Result<Prefilled, RouteError> {
        let cleanup = Cleanup {
            hops: self.hops.clone(),
            session: work.session.clone(),
            epoch: work.epoch,
        };
        #[allow(clippy::cast_possible_truncation)] // at most the prompt
        let held = work.shards.own().frontier() as usize;
        let attempt = Attempt {
            route: self,
            work,
            held,
        };
        let result = attempt.run(progress).await;
        if result.is_ok() {
            cleanup.disarm();
        }
        result
    }
}

/// Closes the session on every stage when an attempt fails or is dropped.
struct Cleanup {
    hops: Vec<Hop>,
    session: String,
    epoch: u64,
}

impl Cleanup {
    fn disarm(mut self) {
        self.hops.clear();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // Best effort: the dropped streams cancel as well.
        if !self.hops.is_empty() {
            tokio::spawn(close(&self.hops, &self.session, self.epoch));
        }
    }
}

/// Ends a session on every stage.
pub(crate) fn close(
    hops: &[Hop],
    session: &str,
    epoch: u64,
) -> impl Future<Output = ()> + Send + 'static + use<> {
    let calls = hops.iter().map(|hop| {
        let mut client = hop.links.control.clone();
        let request = SessionRequest {
            session: session.to_owned(),
            epoch,
            ..SessionRequest::default()
        };
        async move { drop(tokio::time::timeout(CLOSE, client.close(request)).await) }
    });
    let calls: Vec<_> = calls.collect();
    async { drop(futures::future::join_all(calls).await) }
}

impl Attempt<'_> {
    async fn run(&self, progress: Progress) -> Result<Prefilled, RouteError> {
        let start = self.open().await?;
        let mut pulls = self.pulls();
        let (prompt, chunk_tokens) = (&self.work.prompt, self.route.options.chunk_tokens);
        let sending = self.send(Chunk::split(prompt, start.from, self.held, chunk_tokens));
        let computing = self.compute(progress);
        let mut handoffs = Vec::new();
        let pulling = async {
            while let Some(done) = pulls.join_next().await {
                let pulled = done.map_err(|error| RouteError::Refused {
                    endpoint: "handoff".into(),
                    reason: error.to_string(),
                })?;
                handoffs.push(pulled?);
            }
            Ok::<_, RouteError>(())
        };
        // The first error ends all three; dropping them cancels the streams.
        let ((), (hidden, computed), ()) = tokio::try_join!(sending, computing, pulling)?;
        planted::joined(self.work.epoch, handoffs.len());
        let kv = self.work.shards.join()?;
        let remote = Remote {
            session: self.work.session.clone(),
            epoch: self.work.epoch,
            frontier: self.work.prompt.len() as u64,
            hops: self.route.hops.clone(),
            lease: start.lease,
        };
        Ok(Prefilled {
            kv,
            hidden,
            handoffs,
            computed,
            remote: Some(remote),
        })
    }

    /// Opens the session on every stage before anything flows; says where they begin.
    async fn open(&self) -> Result<Start, RouteError> {
        let hops = self.route.hops.iter().enumerate();
        let opened = hops.map(|(index, hop)| self.open_one(index, hop.clone()));
        let replies = futures::future::try_join_all(opened).await?;
        let lease = replies
            .iter()
            .map(|reply| reply.lease_ms)
            .min()
            .unwrap_or_default();
        Ok(Start {
            from: resume(&replies, &self.work.prompt, self.held),
            lease: Duration::from_millis(lease.into()),
        })
    }

    #[allow(clippy::cast_possible_truncation)] // counts and milliseconds
    async fn open_one(&self, index: usize, mut hop: Hop) -> Result<OpenReply, RouteError> {
        let options = &self.route.options;
        let next = self.route.hops.get(index + 1);
        let mut request = Request::new(OpenRequest {
            session: self.work.session.clone(),
            epoch: self.work.epoch,
            index: index as u32,
            next_hop: next.map(|next| next.endpoint.clone()).unwrap_or_default(),
            incarnation: hop.description.incarnation.clone(),
            fingerprint: hop.description.fingerprint.clone(),
            kv_layout: hop.description.kv_layout.clone(),
            tokens: self.work.prompt.len() as u64,
            chunk_tokens: options.chunk_tokens as u32,
            window: options.window as u32,
            timeout_ms: options.timeout.as_millis() as u32,
            held_tokens: self.held as u64,
            activation_bits: 32,
            streams: options.streams,
            frame_bytes: options.frame_bytes as u32,
        });
        propagation::inject(&Span::current(), request.metadata_mut());
        let silent = RouteError::Silent {
            endpoint: hop.endpoint.clone(),
            what: "open",
            timeout: options.timeout,
        };
        let answer = tokio::time::timeout(options.timeout, hop.links.control.open(request))
            .await
            .map_err(|_| silent)?;
        let endpoint = hop.endpoint;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| match status.code() {
                Code::Aborted => RouteError::Restarted {
                    endpoint,
                    reason: status.message().to_owned(),
                },
                Code::ResourceExhausted => RouteError::Full {
                    endpoint,
                    reason: status.message().to_owned(),
                    retry_after: retry_after(&status).unwrap_or(Duration::from_secs(1)),
                },
                _ => refused(&endpoint, &status),
            })
    }

    /// One task per handoff, so that none waits for another.
    fn pulls(&self) -> JoinSet<Result<HandoffReport, RouteError>> {
        let hash = TokenHash::of(&self.work.prompt);
        let streams = self.route.options.streams;
        let shares = self.route.hops.iter().flat_map(|hop| {
            let count = hop.shares(streams).len();
            (0..count).map(move |stream| (hop, stream))
        });
        let mut pulls = JoinSet::new();
        for (part, (hop, stream)) in shares.enumerate() {
            let one = Pull {
                hop: hop.clone(),
                stream,
                part,
                shards: Arc::clone(&self.work.shards),
                session: self.work.session.clone(),
                epoch: self.work.epoch,
                frontier: self.work.prompt.len() as u64,
                hash,
                timeout: self.route.options.timeout,
            };
            pulls.spawn(pull(one).instrument(Span::current()));
        }
        pulls
    }

    async fn send(&self, chunks: Vec<Chunk>) -> Result<(), RouteError> {
        let Some(mut hop) = self.route.hops.first().cloned() else {
            return Ok(());
        };
        let messages: Vec<_> = chunks
            .iter()
            .map(|chunk| token_chunk(&self.work.session, self.work.epoch, chunk))
            .collect();
        let mut request = Request::new(tokio_stream::iter(messages));
        propagation::inject(&Span::current(), request.metadata_mut());
        let reply = hop.links.control.prefill(request).await;
        let reply = reply
            .map_err(|status| refused(&hop.endpoint, &status))?
            .into_inner();
        let (expected, found) = (
            TokenHash::of(&self.work.prompt),
            TokenHash::from_value(reply.token_hash),
        );
        if expected == found || planted::is(Bug::HashUnchecked) {
            return Ok(());
        }
        let (expected, found) = (expected.to_string(), found.to_string());
        Err(RouteError::Frame {
            endpoint: hop.endpoint,
            field: "token hash",
            expected,
            found,
        })
    }

    /// Computes the own layers of every chunk as it arrives, and takes the next one meanwhile.
    async fn compute(&self, progress: Progress) -> Result<(Hidden, Instant), RouteError> {
        let Some(hop) = self.route.hops.last() else {
            return Err(RouteError::Layers {
                expected: 0,
                found: "no stage".into(),
            });
        };
        let mut stream = self.deliver(hop.clone()).await?;
        let width = self.work.slice.info().config.hidden_width();
        let mut assembler = Assembler::new(width, self.route.options.chunk_tokens);
        let (arrived, mut next) = mpsc::channel(1);
        let arrivals = async {
            let arrived = arrived;
            // Nobody takes them any more only when computing failed, and that is told.
            while let Ok(place) = arrived.reserve().await {
                let chunk = self.chunk(&hop.endpoint, &mut stream, &mut assembler).await?;
                let last = chunk.last;
                place.send(chunk);
                if last {
                    break;
                }
            }
            Ok::<_, RouteError>(())
        };
        let computing = async {
            let mut computed = None;
            while let Some(chunk) = next.recv().await {
                let hidden = self.compute_chunk(&hop.endpoint, chunk, &progress).await?;
                computed = Some((hidden, Instant::now()));
            }
            Ok::<_, RouteError>(computed)
        };
        let ((), computed) = tokio::try_join!(arrivals, computing)?;
        computed.ok_or_else(|| RouteError::Refused {
            endpoint: hop.endpoint.clone(),
            reason: "activations: expected a chunk, found none".into(),
        })
    }

    async fn deliver(&self, mut hop: Hop) -> Result<Streaming<ActivationFrame>, RouteError> {
        let timeout = self.route.options.timeout;
        let mut request = Request::new(SessionRequest {
            session: self.work.session.clone(),
            epoch: self.work.epoch,
            ..SessionRequest::default()
        });
        propagation::inject(&Span::current(), request.metadata_mut());
        let silent = RouteError::Silent {
            endpoint: hop.endpoint.clone(),
            what: "deliver",
            timeout,
        };
        let answer = tokio::time::timeout(timeout, hop.links.control.deliver(request))
            .await
            .map_err(|_| silent)?;
        Ok(answer
            .map_err(|status| refused(&hop.endpoint, &status))?
            .into_inner())
    }

    async fn chunk(
        &self,
        endpoint: &str,
        stream: &mut Streaming<ActivationFrame>,
        assembler: &mut Assembler,
    ) -> Result<Chunk, RouteError> {
        let timeout = self.route.options.timeout;
        let silent = || RouteError::Silent {
            endpoint: endpoint.to_owned(),
            what: "activations",
            timeout,
        };
        loop {
            let message = tokio::time::timeout(timeout, stream.message())
                .await
                .map_err(|_| silent())?;
            let Some(frame) = message.map_err(|status| refused(endpoint, &status))? else {
                let reason =
                    "activations: expected chunks up to the last one, found the end of the stream".into();
                return Err(RouteError::Refused {
                    endpoint: endpoint.to_owned(),
                    reason,
                });
            };
            let pushed = assembler
                .push(frame)
                .map_err(|difference| differs(endpoint, difference));
            if let Some(chunk) = pushed? {
                return Ok(chunk);
            }
        }
    }

    /// Computes the own layers of a chunk when its turn comes.
    async fn compute_chunk(
        &self,
        endpoint: &str,
        mut chunk: Chunk,
        progress: &Progress,
    ) -> Result<Hidden, RouteError> {
        let fails = |reason: String| RouteError::Refused {
            endpoint: "output".into(),
            reason,
        };
        chunk
            .continues(&self.work.shards.own())
            .map_err(|difference| differs(endpoint, difference))?;
        let before = chunk
            .hidden
            .take()
            .ok_or_else(|| fails("compute: expected hidden states, found none".into()))?;
        #[allow(clippy::cast_possible_truncation)] // within the prompt
        let start = chunk.start as usize;
        let end = start + chunk.tokens.len();
        let expected = self.work.prompt.get(start..end);
        if expected != Some(&chunk.tokens) {
            let (expected, found) = (format!("{expected:?}"), format!("{:?}", chunk.tokens));
            return Err(differs(endpoint, ("tokens", expected, found)));
        }
        let member = Member {
            flow: self.work.flow,
            shards: Arc::clone(&self.work.shards),
            prompt: Arc::clone(&self.work.prompt),
        };
        let piecewise = |done| Piecewise::new(member, (start, end), Some(before), done);
        let hidden = self.work.compute.chunk(piecewise).await;
        let hidden = hidden.map_err(|error| fails(error.to_string()))?;
        let progress = Arc::clone(progress);
        let told = move || progress(end as u64, &hidden).map(|()| hidden);
        let told = self.work.compute.run(told).await;
        told.map_err(|error| fails(error.to_string()))?
    }
}

/// Where the stages can go on: where all of them stand, if that is in this prompt and not beyond what is held. Otherwise at the beginning.
fn resume(replies: &[OpenReply], prompt: &[u32], held: usize) -> usize {
    let Some(first) = replies.first() else { return 0 };
    let equal = replies
        .iter()
        .all(|reply| (reply.frontier, reply.token_hash) == (first.frontier, first.token_hash));
    let Ok(frontier) = usize::try_from(first.frontier) else {
        return 0;
    };
    let known = equal && frontier <= held && frontier < prompt.len();
    if known && TokenHash::of(&prompt[..frontier]).value() == first.token_hash {
        frontier
    } else {
        0
    }
}

fn differs(endpoint: &str, (field, expected, found): Difference) -> RouteError {
    RouteError::Frame {
        endpoint: endpoint.to_owned(),
        field,
        expected,
        found,
    }
}

fn refused(endpoint: &str, status: &tonic::Status) -> RouteError {
    RouteError::Refused {
        endpoint: endpoint.to_owned(),
        reason: net::reason(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_go_on_where_all_of_them_stand_and_begin_again_otherwise() {
        let prompt: Vec<u32> = (0..10).collect();
        let at = |frontier: usize| OpenReply {
            frontier: frontier as u64,
            token_hash: TokenHash::of(&prompt[..frontier]).value(),
            ..OpenReply::default()
        };
        assert_eq!(resume(&[at(6), at(6)], &prompt, 8), 6);
        assert_eq!(resume(&[at(6), at(0)], &prompt, 8), 0, "one lost it");
        assert_eq!(resume(&[at(9)], &prompt, 8), 0, "beyond what is held");
        assert_eq!(resume(&[at(10)], &prompt, 10), 0, "nothing left to compute");
        let other = OpenReply {
            token_hash: 1,
            ..at(6)
        };
        assert_eq!(resume(&[other], &prompt, 8), 0, "another history");
        assert_eq!(resume(&[], &prompt, 8), 0);
    }
}
