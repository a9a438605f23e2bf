//! Where a stage's computed chunks go: to the next stage, or to the output pod that pulls them.

use std::time::Duration;

use ds4_proto::v1::{ActivationFrame, StreamReply};
use ds4_telemetry::propagation;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tracing::Span;

use super::session::Terms;
use crate::net::{Dialer, Link};

type Reply = AbortOnDropHandle<Result<Response<StreamReply>, Status>>;

pub(crate) enum Onward {
    /// The output pod pulls them.
    Deliver(mpsc::Sender<Result<ActivationFrame, Status>>),
    /// The next stage; its reply comes when the stream ends.
    Forward {
        hop: String,
        frames: mpsc::Sender<ActivationFrame>,
        reply: Reply,
    },
}

impl Onward {
    pub(crate) fn open(
        terms: &Terms,
        dialer: &Dialer,
        deliver: &mpsc::Sender<Result<ActivationFrame, Status>>,
        span: &Span,
    ) -> Result<Self, Status> {
        if terms.next_hop.is_empty() {
            return Ok(Self::Deliver(deliver.clone()));
        }
        let hop = terms.next_hop.clone();
        let client = dialer.stage(&hop, terms.timeout, Link::Hop);
        let mut client =
            client.map_err(|error| Status::unavailable(format!("next hop {hop}: not reachable: {error}")))?;
        let (frames, outgoing) = mpsc::channel(deliver.max_capacity());
        let mut request = Request::new(ReceiverStream::new(outgoing));
        propagation::inject(span, request.metadata_mut());
        let reply = AbortOnDropHandle::new(tokio::spawn(async move { client.forward(request).await }));
        Ok(Self::Forward { hop, frames, reply })
    }

    /// Whether these chunks go to the output pod.
    pub(crate) const fn delivers(&self) -> bool {
        matches!(self, Self::Deliver(_))
    }

    pub(crate) async fn send(&mut self, frame: ActivationFrame, timeout: Duration) -> Result<(), Status> {
        let sent = async {
            match self {
                Self::Deliver(frames) => frames.send(Ok(frame)).await.is_ok(),
                Self::Forward { frames, .. } => frames.send(frame).await.is_ok(),
            }
        };
        match tokio::time::timeout(timeout, sent).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.lost(timeout).await),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "next hop: took nothing within {timeout:?}"
            ))),
        }
    }

    /// Why the next hop does not take frames any more.
    async fn lost(&mut self, timeout: Duration) -> Status {
        match self {
            Self::Deliver(_) => Status::cancelled("deliver: the output pod left"),
            Self::Forward { hop, reply, .. } => match tokio::time::timeout(timeout, reply).await {
                Ok(Ok(Err(status))) => Status::unavailable(format!("next hop {hop}: {}", status.message())),
                _ => Status::unavailable(format!("next hop {hop}: broke off")),
            },
        }
    }

    /// The next stage must have taken every chunk.
    pub(crate) async fn close(self, timeout: Duration) -> Result<(), Status> {
        let Self::Forward {
            hop,
            frames,
            mut reply,
        } = self
        else {
            return Ok(());
        };
        drop(frames);
        match tokio::time::timeout(timeout, &mut reply).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(status))) => Err(Status::unavailable(format!(
                "next hop {hop}: {}",
                status.message()
            ))),
            Ok(Err(error)) => Err(Status::internal(format!("next hop: {error}"))),
            Err(_) => Err(Status::deadline_exceeded(format!("next hop {hop}: no reply"))),
        }
    }
}
