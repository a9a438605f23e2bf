//! One session's work on a stage: compute a chunk, send it on, hand over its KV.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_model::{Kv, ModelSlice};
use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{ActivationFrame, HandoffFrame, StreamReply};
use ds4_telemetry::propagation;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Span;

use super::service::refused;
use super::session::Terms;
use crate::chunk::Chunk;
use crate::frames::{Sender, activation_frames};
use crate::route::channel;

/// Where computed chunks go.
enum Onward {
    /// The output pod pulls them.
    Deliver(mpsc::Sender<Result<ActivationFrame, Status>>),
    /// The next stage; its reply comes when the stream ends.
    Forward(
        mpsc::Sender<ActivationFrame>,
        JoinHandle<Result<Response<StreamReply>, Status>>,
    ),
}

pub(crate) struct Worker {
    slice: Arc<dyn ModelSlice>,
    terms: Terms,
    chunks: mpsc::Receiver<Chunk>,
    deliver: mpsc::Sender<Result<ActivationFrame, Status>>,
    handoff: mpsc::Sender<Result<HandoffFrame, Status>>,
    span: Span,
    compute: Duration,
    activation_bytes: u64,
    /// Cancelled once the commit is handed over: the output pod may leave from then on.
    committed: CancellationToken,
}

impl Worker {
    pub(crate) fn new(
        slice: Arc<dyn ModelSlice>,
        terms: Terms,
        chunks: mpsc::Receiver<Chunk>,
        deliver: mpsc::Sender<Result<ActivationFrame, Status>>,
        handoff: mpsc::Sender<Result<HandoffFrame, Status>>,
        span: Span,
    ) -> Self {
        Self {
            slice,
            terms,
            chunks,
            deliver,
            handoff,
            span,
            compute: Duration::ZERO,
            activation_bytes: 0,
            committed: CancellationToken::new(),
        }
    }

    /// Works until the shard is handed over, something fails, or `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let (deliver, handoff, span) = (self.deliver.clone(), self.handoff.clone(), self.span.clone());
        let committed = self.committed.clone();
        let left = async {
            handoff.closed().await;
            if committed.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            () = cancel.cancelled() => Err(Status::cancelled("session: ended")),
            // A dropped pull is a cancel: nobody wants this shard any more.
            () = left => Err(Status::cancelled("handoff: the output pod left")),
            result = self.prefill() => result,
        };
        span.record("compute_ms", self.compute.as_secs_f64() * 1e3);
        span.record("activation_bytes", self.activation_bytes);
        if let Err(status) = result {
            span.record("error", status.message());
            tracing::warn!(session = %self.terms.session, error = status.message(), "session failed");
            // The receivers may be gone already; then nobody needs the reason.
            let _ = deliver.try_send(Err(status.clone()));
            let _ = handoff.try_send(Err(status));
        }
    }

    async fn prefill(&mut self) -> Result<(), Status> {
        let mut onward = self.onward().await?;
        let info = self.slice.info();
        let mut kv = Kv::new(
            &info.layout,
            ds4_gguf::LayerSpan {
                head: false,
                ..info.span
            },
        );
        let mut sender = Sender::new(self.terms.epoch);
        loop {
            let mut chunk = self.chunk().await?;
            chunk.continues(&kv).map_err(refused)?;
            let end = kv.frontier() + chunk.tokens.len() as u64;
            if end > self.terms.tokens || chunk.last != (end == self.terms.tokens) {
                return Err(refused((
                    "tokens",
                    self.terms.tokens.to_string(),
                    format!("{end} (last: {})", chunk.last),
                )));
            }
            (chunk, kv) = self.compute(chunk, kv).await?;
            self.send(&mut onward, &chunk).await?;
            for frame in sender.rows(&kv, chunk.last) {
                self.hand(frame).await?;
            }
            if chunk.last {
                break;
            }
        }
        #[allow(clippy::cast_possible_truncation)] // half a million years
        let compute = self.compute.as_micros() as u64;
        let commit = sender.commit(&kv, compute, propagation::traceparent(&self.span));
        self.span.record("kv_bytes", kv.bytes());
        self.hand(commit).await?;
        self.committed.cancel();
        self.close(onward).await
    }

    async fn onward(&self) -> Result<Onward, Status> {
        if self.terms.next_hop.is_empty() {
            return Ok(Onward::Deliver(self.deliver.clone()));
        }
        let unreachable = |error: &dyn ToString| {
            Status::unavailable(format!(
                "next hop {}: not reachable: {}",
                self.terms.next_hop,
                error.to_string()
            ))
        };
        let channel =
            channel(&self.terms.next_hop, self.terms.timeout).map_err(|error| unreachable(&error))?;
        let mut client = StageClient::new(channel).max_encoding_message_size(MESSAGE_BYTES);
        let (frames, outgoing) = mpsc::channel(self.terms.window);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        propagation::inject(&self.span, request.metadata_mut());
        Ok(Onward::Forward(
            frames,
            tokio::spawn(async move { client.forward(request).await }),
        ))
    }

    async fn chunk(&mut self) -> Result<Chunk, Status> {
        let timeout = self.terms.timeout;
        match tokio::time::timeout(timeout, self.chunks.recv()).await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => Err(Status::aborted(
                "input: expected chunks up to the last one, found the end of the stream",
            )),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "input: nothing came within {timeout:?}"
            ))),
        }
    }

    async fn compute(&mut self, mut chunk: Chunk, mut kv: Kv) -> Result<(Chunk, Kv), Status> {
        let slice = Arc::clone(&self.slice);
        let span = self.span.clone();
        let work = move || {
            let _entered = span.enter();
            let started = Instant::now();
            chunk
                .compute(&*slice, &mut kv)
                .map(|()| (chunk, kv, started.elapsed()))
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| Status::internal(format!("compute: {error}")))?;
        let (chunk, kv, elapsed) = done.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.compute += elapsed;
        Ok((chunk, kv))
    }

    async fn send(&mut self, onward: &mut Onward, chunk: &Chunk) -> Result<(), Status> {
        for frame in activation_frames(&self.terms.session, self.terms.epoch, chunk) {
            self.activation_bytes += frame.data.len() as u64;
            let timeout = self.terms.timeout;
            let sent = async {
                match onward {
                    Onward::Deliver(frames) => frames.send(Ok(frame)).await.is_ok(),
                    Onward::Forward(frames, _) => frames.send(frame).await.is_ok(),
                }
            };
            match tokio::time::timeout(timeout, sent).await {
                Ok(true) => {}
                Ok(false) => return Err(self.lost(onward).await),
                Err(_) => {
                    return Err(Status::deadline_exceeded(format!(
                        "next hop: took nothing within {timeout:?}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Why the next hop does not take frames any more.
    async fn lost(&self, onward: &mut Onward) -> Status {
        match onward {
            Onward::Deliver(_) => Status::cancelled("deliver: the output pod left"),
            Onward::Forward(_, reply) => match tokio::time::timeout(self.terms.timeout, reply).await {
                Ok(Ok(Err(status))) => {
                    Status::unavailable(format!("next hop {}: {}", self.terms.next_hop, status.message()))
                }
                _ => Status::unavailable(format!("next hop {}: broke off", self.terms.next_hop)),
            },
        }
    }

    async fn hand(&self, frame: HandoffFrame) -> Result<(), Status> {
        let timeout = self.terms.timeout;
        match tokio::time::timeout(timeout, self.handoff.send(Ok(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("handoff: the output pod left")),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "handoff: the output pod took nothing within {timeout:?}"
            ))),
        }
    }

    /// The next stage must have taken every chunk.
    async fn close(&self, onward: Onward) -> Result<(), Status> {
        let Onward::Forward(frames, mut reply) = onward else {
            return Ok(());
        };
        drop(frames);
        match tokio::time::timeout(self.terms.timeout, &mut reply).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(status))) => Err(Status::unavailable(format!(
                "next hop {}: {}",
                self.terms.next_hop,
                status.message()
            ))),
            Ok(Err(error)) => Err(Status::internal(format!("next hop: {error}"))),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "next hop {}: no reply",
                self.terms.next_hop
            ))),
        }
    }
}
