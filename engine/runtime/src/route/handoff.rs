//! Pulling one stage's KV while prefill runs.

use std::time::{Duration, Instant};

use ds4_model::{Kv, KvStaging, TokenHash};
use ds4_proto::v1::{Commit, HandoffFrame, SessionRequest, handoff_frame};
use ds4_telemetry::metrics::Metrics;
use ds4_telemetry::{names, propagation};
use tonic::{Request, Streaming};
use tracing::{Instrument, Span};

use super::connect::Hop;
use crate::RouteError;
use crate::frames::{Receiver, Refusal};

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
    /// When the last frame came.
    pub finished: Instant,
}

/// What a shard must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) epoch: u64,
    pub(crate) frontier: u64,
    pub(crate) hash: TokenHash,
    pub(crate) timeout: Duration,
}

/// Pulls and commits the shard of `hop`. The span carries what came.
pub(crate) async fn pull(
    hop: Hop,
    session: String,
    staging: KvStaging,
    expected: Expected,
) -> Result<(Kv, HandoffReport), RouteError> {
    let span = tracing::info_span!(
        "ds4.kv.handoff", otel.name = names::HANDOFF, stage = %hop.endpoint, layers = %hop.span(),
        bytes = tracing::field::Empty, rows = tracing::field::Empty, frames = tracing::field::Empty,
        duration_ms = tracing::field::Empty, bytes_per_second = tracing::field::Empty, error = tracing::field::Empty,
    );
    let result = receive(hop, session, staging, expected, span.clone())
        .instrument(span.clone())
        .await;
    match &result {
        Ok((_, report)) => record(&span, report),
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
    span.record("duration_ms", seconds * 1e3)
        .record("bytes_per_second", report.bytes as f64 / seconds.max(1e-9));
    Metrics::global().handoff_seconds.observe(seconds);
    Metrics::global().handoff_bytes.inc_by(report.bytes);
}

async fn receive(
    mut hop: Hop,
    session: String,
    staging: KvStaging,
    expected: Expected,
    span: Span,
) -> Result<(Kv, HandoffReport), RouteError> {
    let endpoint = hop.endpoint.clone();
    let silent = |what| RouteError::Silent {
        endpoint: endpoint.clone(),
        what,
        timeout: expected.timeout,
    };
    let refused = |reason: &str| RouteError::Refused {
        endpoint: endpoint.clone(),
        reason: reason.to_owned(),
    };
    let mut request = Request::new(SessionRequest {
        session,
        epoch: expected.epoch,
    });
    propagation::inject(&span, request.metadata_mut());
    let stream = tokio::time::timeout(expected.timeout, hop.client.handoff(request))
        .await
        .map_err(|_| silent("handoff"))?;
    let mut stream: Streaming<HandoffFrame> =
        stream.map_err(|status| refused(status.message()))?.into_inner();
    let mut receiver = Receiver::new(expected.epoch, staging);
    let mut first = None;
    loop {
        let message = tokio::time::timeout(expected.timeout, stream.message())
            .await
            .map_err(|_| silent("KV frames"))?;
        let message = message.map_err(|status| refused(status.message()))?;
        let now = Instant::now();
        match message.and_then(|message| message.frame) {
            None => return Err(refused("KV: expected a commit, found the end of the stream")),
            Some(handoff_frame::Frame::Rows(rows)) => {
                first.get_or_insert(now);
                receiver
                    .rows(&rows)
                    .map_err(|refusal| error(&endpoint, refusal))?;
            }
            Some(handoff_frame::Frame::Commit(commit)) => {
                let report = report(&endpoint, &receiver, &commit, first.unwrap_or(now), now);
                propagation::link(&span, &commit.span);
                let kv = receiver
                    .commit(&commit, expected.frontier, expected.hash)
                    .map_err(|refusal| error(&endpoint, refusal))?;
                return Ok((kv, report));
            }
        }
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
