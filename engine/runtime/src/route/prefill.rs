//! Driving one prompt through the route.

use std::sync::Arc;
use std::time::Instant;

use ds4_gguf::LayerSpan;
use ds4_model::{CompleteKv, Hidden, Kv, KvStaging, ModelSlice, TokenHash};
use ds4_proto::v1::{OpenRequest, SessionRequest};
use ds4_telemetry::propagation;
use tokio::task::JoinSet;
use tonic::{Code, Request, Streaming};
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::connect::{Hop, Route};
use super::handoff::{Expected, HandoffReport, pull};
use crate::RouteError;
use crate::chunk::Chunk;
use crate::frames::{Assembler, token_chunk};

/// Called with every chunk that the output pod has computed: tokens done, and the chunk's streams. An error stops the prefill.
pub(crate) type Progress = Box<dyn FnMut(u64, &Hidden) -> Result<(), RouteError> + Send>;

/// A prompt whose KV is complete.
#[derive(Debug)]
pub(crate) struct Prefilled {
    pub(crate) kv: CompleteKv,
    /// Streams of the last chunk.
    pub(crate) hidden: Hidden,
    pub(crate) handoffs: Vec<HandoffReport>,
    /// When the output pod had computed the last chunk.
    pub(crate) computed: Instant,
}

/// One attempt.
struct Attempt<'a> {
    route: &'a Route,
    slice: &'a Arc<dyn ModelSlice>,
    own: LayerSpan,
    session: String,
    epoch: u64,
    prompt: &'a [u32],
}

impl Route {
    /// Prefills `prompt` through the stages and the own layers of `slice`; nothing of a failed attempt remains.
    pub(crate) async fn prefill(
        &self,
        slice: &Arc<dyn ModelSlice>,
        own: LayerSpan,
        epoch: u64,
        prompt: &[u32],
        progress: Progress,
    ) -> Result<Prefilled, RouteError> {
        let attempt = Attempt {
            route: self,
            slice,
            own,
            session: Uuid::new_v4().to_string(),
            epoch,
            prompt,
        };
        let cleanup = Cleanup {
            hops: self.hops.clone(),
            session: attempt.session.clone(),
            epoch,
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
        for mut hop in std::mem::take(&mut self.hops) {
            let request = SessionRequest {
                session: self.session.clone(),
                epoch: self.epoch,
            };
            // Best effort: the dropped streams cancel as well.
            tokio::spawn(async move { hop.client.close(request).await });
        }
    }
}

impl Attempt<'_> {
    async fn run(&self, progress: Progress) -> Result<Prefilled, RouteError> {
        self.open().await?;
        let mut pulls = self.pulls();
        let chunks = Chunk::split(self.prompt, self.route.options.chunk_tokens);
        let sending = self.send(chunks);
        let computing = self.compute(progress);
        let mut shards = Vec::new();
        let mut handoffs = Vec::new();
        let pulling = async {
            while let Some(done) = pulls.join_next().await {
                let pulled = done.map_err(|error| RouteError::Refused {
                    endpoint: "handoff".into(),
                    reason: error.to_string(),
                })?;
                let (kv, report) = pulled?;
                shards.push(kv);
                handoffs.push(report);
            }
            Ok::<_, RouteError>(())
        };
        // The first error ends all three; dropping them cancels the streams.
        let ((), (own, hidden, computed), ()) = tokio::try_join!(sending, computing, pulling)?;
        shards.push(own);
        let kv = CompleteKv::assemble(&self.slice.info().layout, shards)?;
        Ok(Prefilled {
            kv,
            hidden,
            handoffs,
            computed,
        })
    }

    /// Opens the session on every stage before anything flows.
    async fn open(&self) -> Result<(), RouteError> {
        let opened = self
            .route
            .hops
            .iter()
            .enumerate()
            .map(|(index, hop)| self.open_one(index, hop.clone()));
        futures::future::try_join_all(opened).await.map(|_| ())
    }

    #[allow(clippy::cast_possible_truncation)] // counts and milliseconds
    async fn open_one(&self, index: usize, mut hop: Hop) -> Result<(), RouteError> {
        let options = &self.route.options;
        let mut request = Request::new(OpenRequest {
            session: self.session.clone(),
            epoch: self.epoch,
            index: index as u32,
            next_hop: self
                .route
                .hops
                .get(index + 1)
                .map(|next| next.endpoint.clone())
                .unwrap_or_default(),
            incarnation: hop.description.incarnation.clone(),
            fingerprint: hop.description.fingerprint.clone(),
            kv_layout: hop.description.kv_layout.clone(),
            tokens: self.prompt.len() as u64,
            chunk_tokens: options.chunk_tokens as u32,
            window: options.window as u32,
            timeout_ms: options.timeout.as_millis() as u32,
            held_tokens: 0,
            activation_bits: 32,
        });
        propagation::inject(&Span::current(), request.metadata_mut());
        let silent = RouteError::Silent {
            endpoint: hop.endpoint.clone(),
            what: "open",
            timeout: options.timeout,
        };
        let answer = tokio::time::timeout(options.timeout, hop.client.open(request))
            .await
            .map_err(|_| silent)?;
        answer.map(|_| ()).map_err(|status| match status.code() {
            Code::Aborted => RouteError::Restarted {
                endpoint: hop.endpoint.clone(),
                reason: status.message().to_owned(),
            },
            _ => refused(&hop.endpoint, &status),
        })
    }

    /// One task per stage, so that no stage's KV waits for another's.
    fn pulls(&self) -> JoinSet<Result<(Kv, HandoffReport), RouteError>> {
        let frontier = self.prompt.len() as u64;
        let expected = Expected {
            epoch: self.epoch,
            frontier,
            hash: TokenHash::of(self.prompt),
            timeout: self.route.options.timeout,
        };
        let mut pulls = JoinSet::new();
        for hop in &self.route.hops {
            let staging = KvStaging::new(&self.slice.info().layout, hop.span(), frontier);
            pulls.spawn(
                pull(hop.clone(), self.session.clone(), staging, expected).instrument(Span::current()),
            );
        }
        pulls
    }

    async fn send(&self, chunks: Vec<Chunk>) -> Result<(), RouteError> {
        let Some(mut hop) = self.route.hops.first().cloned() else {
            return Ok(());
        };
        let messages: Vec<_> = chunks
            .iter()
            .map(|chunk| token_chunk(&self.session, self.epoch, chunk))
            .collect();
        let mut request = Request::new(tokio_stream::iter(messages));
        propagation::inject(&Span::current(), request.metadata_mut());
        let reply = hop
            .client
            .prefill(request)
            .await
            .map_err(|status| refused(&hop.endpoint, &status))?
            .into_inner();
        let (expected, found) = (
            TokenHash::of(self.prompt),
            TokenHash::from_value(reply.token_hash),
        );
        if expected == found {
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

    /// Computes the own layers of every chunk as it arrives.
    async fn compute(&self, mut progress: Progress) -> Result<(Kv, Hidden, Instant), RouteError> {
        let Some(hop) = self.route.hops.last() else {
            return Err(RouteError::Layers {
                expected: 0,
                found: "no stage".into(),
            });
        };
        let mut stream = self.deliver(hop.clone()).await?;
        let info = self.slice.info();
        let mut assembler = Assembler::new(info.config.hidden_width(), self.route.options.chunk_tokens);
        let mut kv = Kv::new(&info.layout, self.own);
        loop {
            let chunk = self.chunk(&hop.endpoint, &mut stream, &mut assembler).await?;
            let differs = |(field, expected, found)| RouteError::Frame {
                endpoint: hop.endpoint.clone(),
                field,
                expected,
                found,
            };
            chunk.continues(&kv).map_err(differs)?;
            let last = chunk.last;
            let hidden;
            (kv, hidden) = self.compute_chunk(chunk, kv).await?;
            progress(kv.frontier(), &hidden)?;
            if last {
                return Ok((kv, hidden, Instant::now()));
            }
        }
    }

    async fn deliver(&self, mut hop: Hop) -> Result<Streaming<ds4_proto::v1::ActivationFrame>, RouteError> {
        let timeout = self.route.options.timeout;
        let mut request = Request::new(SessionRequest {
            session: self.session.clone(),
            epoch: self.epoch,
        });
        propagation::inject(&Span::current(), request.metadata_mut());
        let silent = RouteError::Silent {
            endpoint: hop.endpoint.clone(),
            what: "deliver",
            timeout,
        };
        let answer = tokio::time::timeout(timeout, hop.client.deliver(request))
            .await
            .map_err(|_| silent)?;
        Ok(answer
            .map_err(|status| refused(&hop.endpoint, &status))?
            .into_inner())
    }

    async fn chunk(
        &self,
        endpoint: &str,
        stream: &mut Streaming<ds4_proto::v1::ActivationFrame>,
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
            let pushed = assembler.push(frame);
            let differs = |(field, expected, found)| RouteError::Frame {
                endpoint: endpoint.to_owned(),
                field,
                expected,
                found,
            };
            if let Some(chunk) = pushed.map_err(differs)? {
                return Ok(chunk);
            }
        }
    }

    async fn compute_chunk(&self, mut chunk: Chunk, mut kv: Kv) -> Result<(Kv, Hidden), RouteError> {
        let slice = Arc::clone(self.slice);
        let work =
            tokio::task::spawn_blocking(move || chunk.compute(&*slice, &mut kv).map(|()| (kv, chunk.hidden)));
        let failed = |reason: String| RouteError::Refused {
            endpoint: "output".into(),
            reason,
        };
        let (kv, hidden) = work.await.map_err(|error| failed(error.to_string()))??;
        let hidden = hidden.ok_or_else(|| failed("compute: expected hidden states, found none".into()))?;
        Ok((kv, hidden))
    }
}

fn refused(endpoint: &str, status: &tonic::Status) -> RouteError {
    RouteError::Refused {
        endpoint: endpoint.to_owned(),
        reason: status.message().to_owned(),
    }
}
