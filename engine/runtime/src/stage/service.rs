//! The calls of the protocol.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use ds4_model::ModelSlice;
use ds4_proto::v1::stage_server::Stage;
use ds4_proto::v1::{
    ActivationFrame, CloseReply, DescribeRequest, Description, HandoffFrame, OpenReply, OpenRequest,
    SessionRequest, StreamReply, TokenChunk,
};
use ds4_telemetry::{names, propagation};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::StageOptions;
use super::session::{Session, Sessions, Terms, take};
use super::worker::Worker;
use crate::Identity;
use crate::chunk::Chunk;
use crate::frames::{Assembler, Difference, from_token_chunk};

/// KV frames that may wait for the output pod; at 1 MiB each this bounds a session's send buffer.
const HANDOFF_FRAMES: usize = 16;

pub(crate) struct Service {
    slice: Arc<dyn ModelSlice>,
    identity: Identity,
    options: StageOptions,
    sessions: Arc<Sessions>,
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) fn refused((field, expected, found): Difference) -> Status {
    Status::invalid_argument(format!("{field}: expected {expected}, found {found}"))
}

impl Service {
    pub(crate) fn new(
        slice: Arc<dyn ModelSlice>,
        identity: Identity,
        options: StageOptions,
        sessions: Arc<Sessions>,
    ) -> Self {
        Self {
            slice,
            identity,
            options,
            sessions,
        }
    }

    fn check(&self, request: &OpenRequest) -> Result<(), Status> {
        let ours = self.identity.description();
        let most = self.options.max_tokens;
        if ours.incarnation != request.incarnation {
            // ABORTED tells the caller to describe the stage again and retry; nothing else here does.
            return Err(Status::aborted(format!(
                "incarnation: expected {}, found {}",
                ours.incarnation, request.incarnation
            )));
        }
        let fields = [
            ("fingerprint", &ours.fingerprint, &request.fingerprint),
            ("kv layout", &ours.kv_layout, &request.kv_layout),
        ];
        if let Some((field, ours, theirs)) = fields.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            return Err(Status::failed_precondition(format!(
                "{field}: expected {ours}, found {theirs}"
            )));
        }
        if request.tokens == 0 || request.tokens > most {
            return Err(refused((
                "tokens",
                format!("1 to {most}"),
                request.tokens.to_string(),
            )));
        }
        if request.held_tokens != 0 {
            return Err(refused((
                "held tokens",
                "0 (this build sends every row)".into(),
                request.held_tokens.to_string(),
            )));
        }
        if request.activation_bits != 32 {
            return Err(refused((
                "activation bits",
                "32".into(),
                request.activation_bits.to_string(),
            )));
        }
        if request.chunk_tokens == 0 || u64::from(request.chunk_tokens) > most {
            return Err(refused((
                "tokens in a chunk",
                format!("1 to {most}"),
                request.chunk_tokens.to_string(),
            )));
        }
        Ok(())
    }

    /// The input of a session and, behind it, what ends the stream early.
    fn input(&self, session: &str, epoch: u64) -> Result<(Arc<Session>, mpsc::Sender<Chunk>), Status> {
        let session = self.sessions.find(session, epoch)?;
        let input = take(&session.input, "input")?;
        Ok((session, input))
    }
}

/// Hands a chunk to the worker; an ended session refuses.
async fn feed(session: &Session, input: &mpsc::Sender<Chunk>, chunk: Chunk) -> Result<(), Status> {
    tokio::select! {
        () = session.cancel.cancelled() => Err(Status::cancelled("session: ended")),
        sent = input.send(chunk) => sent.map_err(|_| Status::cancelled("session: ended")),
    }
}

/// The next message, within the session's deadline; silence and early ends are named.
async fn next<T>(session: &Session, stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let timeout = session.terms.timeout;
    tokio::select! {
        () = session.cancel.cancelled() => Err(Status::cancelled("session: ended")),
        message = tokio::time::timeout(timeout, stream.message()) => {
            message.map_err(|_| Status::deadline_exceeded(format!("input: nothing came within {timeout:?}")))?
        }
    }
}

#[tonic::async_trait]
impl Stage for Service {
    type DeliverStream = Frames<ActivationFrame>;
    type HandoffStream = Frames<HandoffFrame>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        Ok(Response::new(self.identity.description().clone()))
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenReply>, Status> {
        let info = self.slice.info();
        let span = tracing::info_span!(
            "ds4.stage", otel.name = names::STAGE, layers = %info.span, backend = %info.backend,
            session = %request.get_ref().session,
            index = request.get_ref().index, tokens = request.get_ref().tokens,
            compute_ms = tracing::field::Empty, activation_bytes = tracing::field::Empty, kv_bytes = tracing::field::Empty,
            error = tracing::field::Empty,
        );
        propagation::continue_from(&span, request.metadata());
        let request = request.into_inner();
        self.check(&request)?;
        let terms = Terms::new(&request);
        let (input, chunks) = mpsc::channel(terms.window);
        let (deliver, delivered) = mpsc::channel(terms.window);
        let (handoff, handed) = mpsc::channel(HANDOFF_FRAMES);
        let cancel = self.sessions.token();
        let session = Arc::new(Session {
            terms: terms.clone(),
            cancel: cancel.clone(),
            input: Mutex::new(Some(input)),
            deliver: Mutex::new(Some(delivered)),
            handoff: Mutex::new(Some(handed)),
        });
        self.sessions.add(session)?;
        let worker = Worker::new(
            Arc::clone(&self.slice),
            terms.clone(),
            chunks,
            deliver,
            handoff,
            span.clone(),
        );
        let sessions = Arc::clone(&self.sessions);
        let work = async move {
            worker.run(cancel).await;
            sessions.remove(&terms.session, terms.epoch);
            tracing::debug!(open = sessions.count(), "session ended");
        };
        tokio::spawn(work.instrument(span));
        Ok(Response::new(OpenReply {
            lease_ms: request.timeout_ms,
        }))
    }

    async fn prefill(
        &self,
        request: Request<Streaming<TokenChunk>>,
    ) -> Result<Response<StreamReply>, Status> {
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("prefill: expected a chunk, found none"))?;
        let (session, input) = self.input(&first.session, first.epoch)?;
        let mut reply = StreamReply::default();
        let mut next_chunk = Some(first);
        while let Some(message) = next_chunk {
            let chunk = from_token_chunk(message, session.terms.chunk_tokens).map_err(refused)?;
            let last = chunk.last;
            reply = after(&chunk);
            feed(&session, &input, chunk).await?;
            next_chunk = if last {
                None
            } else {
                next(&session, &mut stream).await?
            };
        }
        Ok(Response::new(reply))
    }

    async fn forward(
        &self,
        request: Request<Streaming<ActivationFrame>>,
    ) -> Result<Response<StreamReply>, Status> {
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("forward: expected a frame, found none"))?;
        let (session, input) = self.input(&first.session, first.epoch)?;
        let mut assembler = Assembler::new(
            self.slice.info().config.hidden_width(),
            session.terms.chunk_tokens,
        );
        let mut reply = StreamReply::default();
        let mut next_frame = Some(first);
        while let Some(frame) = next_frame {
            let mut last = false;
            if let Some(chunk) = assembler.push(frame).map_err(refused)? {
                last = chunk.last;
                reply = after(&chunk);
                feed(&session, &input, chunk).await?;
            }
            next_frame = if last {
                None
            } else {
                next(&session, &mut stream).await?
            };
        }
        Ok(Response::new(reply))
    }

    async fn deliver(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let request = request.into_inner();
        let session = self.sessions.find(&request.session, request.epoch)?;
        let frames = take(&session.deliver, "deliver")?;
        Ok(Response::new(ReceiverStream::new(frames).boxed()))
    }

    async fn handoff(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::HandoffStream>, Status> {
        let request = request.into_inner();
        let session = self.sessions.find(&request.session, request.epoch)?;
        let frames = take(&session.handoff, "handoff")?;
        Ok(Response::new(ReceiverStream::new(frames).boxed()))
    }

    async fn close(&self, request: Request<SessionRequest>) -> Result<Response<CloseReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(CloseReply {
            found: self.sessions.remove(&request.session, request.epoch),
        }))
    }
}

/// Where a stream stands after `chunk`.
fn after(chunk: &Chunk) -> StreamReply {
    let mut hash = chunk.hash_before;
    hash.extend(&chunk.tokens);
    StreamReply {
        frontier: chunk.start + chunk.tokens.len() as u64,
        token_hash: hash.value(),
    }
}
