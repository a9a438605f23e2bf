//! The answer to a pull: messages that are encoded already, as the body that goes into the connection. What tonic encodes itself is copied once more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use ds4_proto::v1::HandoffFrame;
use futures::StreamExt;
use http::HeaderMap;
use http_body::Frame;
use tonic::body::Body;
use tonic::{Response, Status};

use super::service::Frames;
use super::session::Outgoing;
use crate::frames::Encoded;
use crate::net::beside;

/// The answer of a call whose messages are `frames`. Its own stream is empty, until [`with_messages`] puts them in its place.
pub(crate) fn answer(frames: Outgoing<Encoded>) -> Response<Frames<HandoffFrame>> {
    let mut answer = Response::new(futures::stream::empty().boxed());
    beside::put(answer.extensions_mut(), frames);
    answer
}

/// The same answer with its messages as its body, if it is one of [`answer`].
pub(crate) fn with_messages(mut answer: http::Response<Body>) -> http::Response<Body> {
    match beside::take(answer.extensions_mut()) {
        Some(frames) => answer.map(|_| Body::new(Messages(Some(frames)))),
        None => answer,
    }
}

/// Messages, then the status that ends them.
struct Messages(Option<Outgoing<Encoded>>);

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frames) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let status = match ready!(frames.poll_recv(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message.bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.0 = None;
        let mut trailers = HeaderMap::new();
        let ended = status.add_header(&mut trailers);
        Poll::Ready(Some(ended.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
