//! Messages of a handoff as they come: rows stay in the pieces that the connection read. What tonic decodes itself it puts together first, a copy.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Buf;
use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::handoff_frame::Frame;
use ds4_proto::v1::{HandoffFrame, KvFrame};
use http_body::Body as _;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint};
use tonic::body::Body;
use tonic::{Code, Response, Status};

use crate::frames::{DATA, PREFIX, ROWS};
use crate::net::{Pieces, beside};

/// The same answer with its body past tonic's decoder, for [`Messages::of`].
pub(super) fn undecoded(mut answer: http::Response<Body>) -> http::Response<Body> {
    let body = std::mem::take(answer.body_mut());
    beside::put(answer.extensions_mut(), body);
    answer
}

/// What a stream brings, one message after the other.
pub(super) struct Messages {
    body: Body,
    came: Pieces,
}

/// One message: rows are not in their frame but beside it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) frame: Frame,
    pub(super) rows: Pieces,
}

impl Messages {
    /// Those of an answer that went through [`undecoded`].
    pub(super) fn of<T>(mut answer: Response<T>) -> Self {
        let body: Option<Body> = beside::take(answer.extensions_mut());
        Self {
            body: body.unwrap_or_default(),
            came: Pieces::default(),
        }
    }

    /// The next one; none at the end.
    ///
    /// # Errors
    /// When the sender says why no more comes, or what came is no message.
    pub(super) async fn next(&mut self) -> Result<Option<Received>, Status> {
        if !self.fill(PREFIX).await? {
            return Ok(None);
        }
        let (compressed, length) = (self.came.get_u8(), self.came.get_u32() as usize);
        if compressed != 0 {
            return Err(wrong("expected one that is not compressed"));
        }
        if length > MESSAGE_BYTES {
            return Err(wrong(format!(
                "too large: expected {MESSAGE_BYTES} bytes at most, found {length}"
            )));
        }
        if length > 0 && !self.fill(length).await? {
            return Err(wrong(format!(
                "expected {length} bytes, found the end of the stream"
            )));
        }
        decoded(self.came.split(length)).map(Some)
    }

    /// Reads until `count` bytes are there. False when the stream ends first, with nothing left of it.
    async fn fill(&mut self, count: usize) -> Result<bool, Status> {
        while self.came.remaining() < count {
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            let Some(frame) = frame.transpose()? else {
                return match self.came.remaining() {
                    0 => Ok(false),
                    found => Err(wrong(format!(
                        "expected {count} bytes, found {found} and the end of the stream"
                    ))),
                };
            };
            match frame.into_data() {
                Ok(data) => self.came.push(data),
                Err(frame) => ended(&frame)?,
            }
        }
        Ok(true)
    }
}

/// What the trailers say.
fn ended(frame: &http_body::Frame<bytes::Bytes>) -> Result<(), Status> {
    match frame.trailers_ref().and_then(Status::from_header_map) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

fn wrong(what: impl std::fmt::Display) -> Status {
    Status::internal(format!("message of a handoff: {what}"))
}

fn decoded(mut message: Pieces) -> Result<Received, Status> {
    if message.chunk().first() == Some(&ROWS_KEY) {
        let (frame, rows) = rows(message)?;
        return Ok(Received {
            frame: Frame::Rows(frame),
            rows,
        });
    }
    let message = HandoffFrame::decode(&mut message).map_err(wrong)?;
    let frame = message
        .frame
        .ok_or_else(|| wrong("expected rows, a commit or a beat, found neither"))?;
    Ok(Received {
        frame,
        rows: Pieces::default(),
    })
}

/// How a message begins that holds rows: its only field, of a length that follows.
#[allow(clippy::cast_possible_truncation)] // one byte, as of every field below 16
const ROWS_KEY: u8 = (ROWS << 3) as u8 | WireType::LengthDelimited as u8;

/// A frame, and its rows as they came.
fn rows(mut message: Pieces) -> Result<(KvFrame, Pieces), Status> {
    decode_key(&mut message).map_err(wrong)?;
    let length = decode_varint(&mut message).map_err(wrong)?;
    if length != message.remaining() as u64 {
        return Err(wrong(format!(
            "expected a frame of {} bytes, found {length}",
            message.remaining()
        )));
    }
    let (mut frame, mut rows) = (KvFrame::default(), Pieces::default());
    while message.has_remaining() {
        let (tag, kind) = decode_key(&mut message).map_err(wrong)?;
        if (tag, kind) == (DATA, WireType::LengthDelimited) {
            let length = decode_varint(&mut message).map_err(wrong)?;
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= message.remaining());
            rows = message.split(length.ok_or_else(|| wrong("expected rows within it, found more"))?);
        } else {
            let merged = frame.merge_field(tag, kind, &mut message, DecodeContext::default());
            merged.map_err(wrong)?;
        }
    }
    Ok((frame, rows))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use ds4_proto::v1::{Beat, Commit};
    use http::HeaderMap;
    use http_body::Frame as Part;

    use super::*;

    /// A body in given parts.
    struct Cut(VecDeque<Part<Bytes>>);

    impl http_body::Body for Cut {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Part<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    /// A stream of these messages in pieces of `size` bytes, ended by `status`.
    fn stream(bytes: &[u8], size: usize, status: &Status) -> Messages {
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).expect("a header");
        let pieces = bytes
            .chunks(size)
            .map(|piece| Part::data(Bytes::copy_from_slice(piece)));
        let parts = pieces.chain([Part::trailers(trailers)]).collect();
        Messages {
            body: Body::new(Cut(parts)),
            came: Pieces::default(),
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("small").to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    fn sound() -> Vec<(Frame, Vec<u8>)> {
        let rows = KvFrame {
            epoch: 7,
            layer: 3,
            kind: 2,
            first_row: 1 << 40,
            rows: 9,
            crc32c: 0xdead_beef,
            data: Bytes::new(),
        };
        let data: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        let commit = Commit {
            frames: 2,
            digest: Bytes::from_static(&[5; 32]),
            ..Commit::default()
        };
        vec![
            (Frame::Beat(Beat { frontier: 5 }), vec![]),
            (Frame::Rows(rows.clone()), data),
            (Frame::Rows(rows), vec![]),
            (Frame::Commit(commit), vec![]),
        ]
    }

    fn sent(messages: &[(Frame, Vec<u8>)]) -> Vec<u8> {
        let encoded = messages.iter().map(|(frame, data)| {
            let mut frame = frame.clone();
            if let Frame::Rows(rows) = &mut frame {
                rows.data = data.clone().into();
            }
            framed(&HandoffFrame { frame: Some(frame) }.encode_to_vec())
        });
        encoded.collect::<Vec<_>>().concat()
    }

    /// What the generated code encodes comes out, wherever the connection cuts it.
    #[tokio::test]
    async fn messages_come_whole_from_any_pieces() {
        let messages = sound();
        let bytes = sent(&messages);
        for size in (1..130).chain([900, bytes.len()]) {
            let mut stream = stream(&bytes, size, &Status::ok(""));
            for (frame, data) in &messages {
                let found = stream.next().await.expect("sound").expect("a message");
                assert_eq!(&found.frame, frame);
                assert_eq!(found.rows.iter().collect::<Vec<_>>().concat(), *data);
            }
            assert!(stream.next().await.expect("an end").is_none());
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_or_is_none_is_refused_with_its_reason() {
        let bytes = sent(&sound());
        let failed = |bytes: &[u8], status: Status| {
            let mut stream = stream(bytes, 64, &status);
            async move {
                loop {
                    match stream.next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return String::new(),
                        Err(status) => return status.message().to_owned(),
                    }
                }
            }
        };
        assert_eq!(failed(&bytes, Status::ok("")).await, "");
        assert_eq!(
            failed(&bytes, Status::aborted("the stage ends")).await,
            "the stage ends"
        );
        let cut = failed(&bytes[..bytes.len() - 1], Status::ok("")).await;
        assert!(cut.contains("and the end of the stream"), "{cut}");
        let compressed = failed(&[1, 0, 0, 0, 0], Status::ok("")).await;
        assert!(compressed.contains("not compressed"), "{compressed}");
        let long = failed(&[0, 0xff, 0, 0, 0], Status::ok("")).await;
        assert!(long.contains("too large"), "{long}");
        let more = failed(&framed(&[ROWS_KEY, 1, 8, 9]), Status::ok("")).await;
        assert!(more.contains("expected a frame of 2 bytes, found 1"), "{more}");
        let beyond = failed(&framed(&[ROWS_KEY, 3, 0x3a, 9, 1]), Status::ok("")).await;
        assert!(beyond.contains("expected rows within it"), "{beyond}");
        let nothing = failed(&framed(&[]), Status::ok("")).await;
        assert!(nothing.contains("found neither"), "{nothing}");
    }
}
