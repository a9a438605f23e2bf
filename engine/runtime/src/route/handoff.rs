//! Pulling one stage's KV while prefill runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_model::{KvStaging, TokenHash};
use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{Commit, SessionRequest, handoff_frame::Frame};
use ds4_telemetry::metrics::Metrics;
use ds4_telemetry::{names, propagation};
use tonic::Request;
use tower::ServiceExt;
use tracing::{Instrument, Span};

use super::connect::Hop;
use super::messages::{Messages, undecoded};
use crate::RouteError;
use crate::frames::{Receiver, Refusal};
use crate::net;
use crate::planted::{self, Bug};
use crate::shards::Shards;

/// What one stage's handoff took.
#[derive(Clone, Debug)]
pub struct HandoffReport {
    /// Which stage.
    pub endpoint: String,
    /// Bytes of rows.
    pub bytes: u64,
    /// Rows of all kinds.
    pub rows: u64,
    /// Frames.
    pub frames: u64,
    /// First to last frame.
    pub duration: Duration,
    /// Computing on the stage.
    pub compute: Duration,
    /// Bytes of rows that the stage sent after its last chunk was computed.
    pub tail_bytes: u64,
    /// From then until it had sent everything.
    pub tail: Duration,
    /// When the last frame came.
    pub finished: Instant,
}

/// One handoff: some layers of one stage, on a connection of its own.
pub(crate) struct Pull {
    pub(crate) hop: Hop,
    /// Which of the stage's handoffs.
    pub(crate) stream: usize,
    /// Which part of the session it extends.
    pub(crate) part: usize,
    pub(crate) shards: Arc<Shards>,
    pub(crate) session: String,
    pub(crate) epoch: u64,
    /// What the part must be afterwards.
    pub(crate) frontier: u64,
    pub(crate) hash: TokenHash,
    pub(crate) timeout: Duration,
}

/// Pulls the rows and commits them. The span carries what came.
pub(crate) async fn pull(pull: Pull) -> Result<HandoffReport, RouteError> {
    let layers = pull.shards.part(pull.part).span();
    let span = tracing::info_span!(
        "ds4.kv.handoff", otel.name = names::HANDOFF, stage = %pull.hop.endpoint, %layers,
        bytes = tracing::field::Empty, rows = tracing::field::Empty, frames = tracing::field::Empty,
        duration_ms = tracing::field::Empty, bytes_per_second = tracing::field::Empty,
        tail_bytes = tracing::field::Empty, tail_ms = tracing::field::Empty, error = tracing::field::Empty,
    );
    let result = receive(pull, span.clone()).instrument(span.clone()).await;
    match &result {
        Ok(report) => record(&span, report),
        Err(error) => {
            span.record("error", tracing::field::display(error));
        }
    }
    result
}

#[allow(clippy::cast_precision_loss)] // a rate
fn record(span: &Span, report: &HandoffReport) {
    let seconds = report.duration.as_secs_f64();
    span.record("bytes", report.bytes)
        .record("rows", report.rows)
        .record("frames", report.frames);
    span.record("tail_bytes", report.tail_bytes)
        .record("tail_ms", report.tail.as_secs_f64() * 1e3);
    span.record("duration_ms", seconds * 1e3)
        .record("bytes_per_second", report.bytes as f64 / seconds.max(1e-9));
    Metrics::global().handoff_seconds.observe(seconds);
    Metrics::global().handoff_bytes.inc_by(report.bytes);
}

async fn receive(pull: Pull, span: Span) -> Result<HandoffReport, RouteError> {
    let Pull { hop, timeout, .. } = &pull;
    let endpoint = hop.endpoint.clone();
    let refused = |reason: String| RouteError::Refused {
        endpoint: endpoint.clone(),
        reason,
    };
    let mut stream = open(&pull, &span).await?;
    let mut receiver = Receiver::new(pull.epoch, staging(&pull));
    let mut first = None;
    loop {
        let message = tokio::time::timeout(*timeout, stream.next())
            .await
            .map_err(|_| silent(&pull, "KV frames"))?;
        let message = message.map_err(|status| refused(net::reason(&status)))?;
        let now = Instant::now();
        let Some(message) = message else {
            return Err(refused(
                "KV: expected a commit, found the end of the stream".into(),
            ));
        };
        match message.frame {
            Frame::Beat(_) => {}
            Frame::Rows(frame) => {
                first.get_or_insert(now);
                receiver
                    .rows(&frame, &message.rows)
                    .map_err(|refusal| error(&endpoint, refusal))?;
                if planted::is(Bug::PublishedEarly) && receiver.rows == missing(&pull) {
                    let report = report(&endpoint, &receiver, &Commit::default(), now, now);
                    receiver.publish(&mut pull.shards.part(pull.part), pull.frontier, pull.hash);
                    return Ok(report);
                }
            }
            Frame::Commit(commit) => {
                let report = report(&endpoint, &receiver, &commit, first.unwrap_or(now), now);
                propagation::link(&span, &commit.span);
                receiver
                    .commit(
                        &commit,
                        &mut pull.shards.part(pull.part),
                        pull.frontier,
                        pull.hash,
                    )
                    .map_err(|refusal| error(&endpoint, refusal))?;
                return Ok(report);
            }
        }
    }
}

/// How many rows the part lacks.
fn missing(pull: &Pull) -> u64 {
    let part = pull.shards.part(pull.part);
    let (layout, held) = (part.layout(), part.frontier());
    let rows = |layer| {
        let kinds = layout.kinds(layer).iter();
        let rows = kinds.map(move |kind| layout.missing_rows(layer, *kind, held, pull.frontier));
        rows.map(|rows| rows.end - rows.start).sum::<u64>()
    };
    part.span().layers().map(rows).sum()
}

/// What the part lacks.
fn staging(pull: &Pull) -> KvStaging {
    KvStaging::onto(&mut pull.shards.part(pull.part), pull.frontier)
}

async fn open(pull: &Pull, span: &Span) -> Result<Messages, RouteError> {
    let lanes = &pull.hop.links.lanes;
    let lane = lanes[pull.stream % lanes.len()].clone();
    let mut client = StageClient::new(lane.map_response(undecoded));
    let mut request = Request::new(SessionRequest {
        session: pull.session.clone(),
        epoch: pull.epoch,
        #[allow(clippy::cast_possible_truncation)] // a few
        stream: pull.stream as u32,
    });
    propagation::inject(span, request.metadata_mut());
    let answer = tokio::time::timeout(pull.timeout, client.handoff(request)).await;
    let answer = answer.map_err(|_| silent(pull, "handoff"))?;
    let answer = answer.map_err(|status| RouteError::Refused {
        endpoint: pull.hop.endpoint.clone(),
        reason: net::reason(&status),
    })?;
    Ok(Messages::of(answer))
}

fn silent(pull: &Pull, what: &'static str) -> RouteError {
    RouteError::Silent {
        endpoint: pull.hop.endpoint.clone(),
        what,
        timeout: pull.timeout,
    }
}

fn report(
    endpoint: &str,
    receiver: &Receiver,
    commit: &Commit,
    first: Instant,
    now: Instant,
) -> HandoffReport {
    HandoffReport {
        endpoint: endpoint.to_owned(),
        bytes: receiver.bytes,
        rows: receiver.rows,
        frames: receiver.frames,
        duration: now - first,
        compute: Duration::from_micros(commit.compute_us),
        tail_bytes: commit.tail_bytes,
        tail: Duration::from_micros(commit.tail_us),
        finished: now,
    }
}

fn error(endpoint: &str, refusal: Refusal) -> RouteError {
    let endpoint = endpoint.to_owned();
    match refusal {
        Refusal::Frame((field, expected, found)) => RouteError::Frame {
            endpoint,
            field,
            expected,
            found,
        },
        Refusal::Kv(source) => RouteError::Kv { endpoint, source },
    }
}
