//! The calls of the protocol.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use ds4_model::{Kv, TokenHash};
use ds4_proto::v1::stage_server::Stage;
use ds4_proto::v1::{
    ActivationFrame, CloseReply, DescribeRequest, Description, HandoffFrame, OpenReply, OpenRequest,
    RenewReply, RenewRequest, SessionRequest, StreamReply, TokenChunk,
};
use ds4_telemetry::{names, propagation};
use futures::{Stream, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use super::StageOptions;
use super::answer::answer;
use super::refusal::refused;
use super::session::{Session, Terms};
use super::worker::{Ends, Shared, Worker};
use crate::Identity;
use crate::chunk::Chunk;
use crate::frames::{Assembler, frames_of_chunk, from_token_chunk};

/// KV frames that may wait for the output pod; with the frame's size this bounds a session's send buffer.
const HANDOFF_FRAMES: usize = 16;

pub(crate) struct Service {
    shared: Shared,
    identity: Identity,
    options: StageOptions,
}

/// The messages of an answer.
pub(crate) type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(crate) const fn new(shared: Shared, identity: Identity, options: StageOptions) -> Self {
        Self {
            shared,
            identity,
            options,
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
        if request.held_tokens >= request.tokens {
            return Err(refused((
                "held tokens",
                format!("fewer than {}", request.tokens),
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

    /// Opens the session and starts its worker.
    fn start(&self, request: &OpenRequest, span: Span) -> Result<OpenReply, Status> {
        let info = self.shared.slice.info();
        let terms = Terms::new(request, info.span);
        let (input, chunks) = mpsc::channel(terms.window);
        let width = info.config.hidden_width();
        // A whole chunk, so that it goes out while the next one is computed.
        let places = frames_of_chunk(terms.chunk_tokens, width, terms.frame_bytes);
        let (deliver, delivered) = mpsc::channel(places.max(1));
        let (handoffs, handed): (Vec<_>, Vec<_>) = terms
            .streams
            .iter()
            .map(|_| mpsc::channel(HANDOFF_FRAMES))
            .unzip();
        let cancel = self.shared.sessions.token();
        let session = Arc::new(Session {
            terms: terms.clone(),
            cancel: cancel.clone(),
            input: Mutex::new(Some(input)),
            deliver: Mutex::new(Some(delivered)),
            handoffs: handed
                .into_iter()
                .map(|frames| Mutex::new(Some(frames)))
                .collect(),
            taken: Notify::new(),
        });
        // The most that it may come to hold is set aside now, so that it cannot run out of room on the way.
        let bytes = info.layout.bytes(info.span.layers(), terms.tokens);
        let kept = self.shared.sessions.open(session, bytes)?;
        let reply = OpenReply {
            lease_ms: u32::try_from(self.options.lease.as_millis()).unwrap_or(u32::MAX),
            frontier: kept.as_ref().map_or(0, Kv::frontier),
            token_hash: kept.as_ref().map_or_else(TokenHash::default, Kv::hash).value(),
        };
        let ends = Ends {
            chunks,
            deliver,
            handoffs,
        };
        let worker = Worker::new(self.shared.clone(), terms, ends, kept, span.clone());
        tokio::spawn(worker.run(cancel).instrument(span));
        Ok(reply)
    }

    /// The input of a session and, behind it, what ends the stream early.
    fn input(&self, session: &str, epoch: u64) -> Result<(Arc<Session>, Input), Status> {
        let session = self.shared.sessions.find(session, epoch)?;
        let input = session.take(&session.input, "input")?;
        Ok((session, input))
    }
}

/// What a session's worker is fed with; an error is the reason why no more comes.
pub(crate) type Input = mpsc::Sender<Result<Chunk, Status>>;

/// Hands a chunk to the worker; an ended session refuses.
async fn feed(session: &Session, input: &Input, chunk: Chunk) -> Result<(), Status> {
    tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(Status::cancelled("session: ended")),
        sent = input.send(Ok(chunk)) => sent.map_err(|_| Status::cancelled("session: ended")),
    }
}

/// The end of an input; the worker hears why, when it is not a good one, before its neighbours complain of it.
fn told(input: &Input, result: Result<StreamReply, Status>) -> Result<Response<StreamReply>, Status> {
    if let Err(status) = &result {
        // A full channel: the worker has enough to do until it finds the end.
        let _ = input.try_send(Err(status.clone()));
    }
    result.map(Response::new)
}

/// The next message, within the session's deadline; silence and early ends are named.
async fn next<T>(session: &Session, stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let timeout = session.terms.timeout;
    tokio::select! {
        biased;
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
        let mut description = self.identity.description().clone();
        description.draining = self.shared.sessions.draining();
        Ok(Response::new(description))
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenReply>, Status> {
        let info = self.shared.slice.info();
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
        Ok(Response::new(self.start(&request, span)?))
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
        told(&input, tokens(&session, &input, first, &mut stream).await)
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
        let assembler = Assembler::new(
            self.shared.slice.info().config.hidden_width(),
            session.terms.chunk_tokens,
        );
        let fed = activations(&session, &input, assembler, first, &mut stream);
        told(&input, fed.await)
    }

    async fn deliver(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let request = request.into_inner();
        let session = self.shared.sessions.find(&request.session, request.epoch)?;
        let frames = session.take(&session.deliver, "deliver")?;
        Ok(Response::new(ReceiverStream::new(frames).boxed()))
    }

    async fn handoff(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::HandoffStream>, Status> {
        let request = request.into_inner();
        let session = self.shared.sessions.find(&request.session, request.epoch)?;
        let stream = session.handoffs.get(request.stream as usize).ok_or_else(|| {
            let (expected, found) = (session.handoffs.len(), request.stream);
            refused(("stream", format!("0 to {}", expected - 1), found.to_string()))
        })?;
        Ok(answer(session.take(stream, "handoff")?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        Ok(Response::new(RenewReply {
            lost: self.shared.sessions.renew(request.into_inner().sessions),
            draining: self.shared.sessions.draining(),
        }))
    }

    async fn close(&self, request: Request<SessionRequest>) -> Result<Response<CloseReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(CloseReply {
            found: self.shared.sessions.remove(&request.session, request.epoch),
        }))
    }
}

/// Feeds a session with the prompt.
async fn tokens(
    session: &Session,
    input: &Input,
    first: TokenChunk,
    stream: &mut Streaming<TokenChunk>,
) -> Result<StreamReply, Status> {
    let mut message = first;
    loop {
        let chunk = from_token_chunk(message, session.terms.chunk_tokens).map_err(refused)?;
        let (last, reply) = (chunk.last, after(&chunk));
        feed(session, input, chunk).await?;
        if last {
            return Ok(reply);
        }
        match next(session, stream).await? {
            Some(next) => message = next,
            None => return Ok(reply),
        }
    }
}

/// Feeds a session with what the stage before it computed.
async fn activations(
    session: &Session,
    input: &Input,
    mut assembler: Assembler,
    first: ActivationFrame,
    stream: &mut Streaming<ActivationFrame>,
) -> Result<StreamReply, Status> {
    let (mut frame, mut reply) = (first, StreamReply::default());
    loop {
        if let Some(chunk) = assembler.push(frame).map_err(refused)? {
            let last = chunk.last;
            reply = after(&chunk);
            feed(session, input, chunk).await?;
            if last {
                return Ok(reply);
            }
        }
        match next(session, stream).await? {
            Some(next) => frame = next,
            None => return Ok(reply),
        }
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
