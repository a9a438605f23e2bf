//! A handoff's messages as gRPC sends them. Rows are copied once, out of the session into the message that goes out.

use bytes::{BufMut, Bytes, BytesMut};
use ds4_proto::v1::{HandoffFrame, KvFrame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::spare::Spare;

/// Bytes before a message: whether it is compressed, and its length in four.
pub(crate) const PREFIX: usize = 5;
/// Room before rows for everything that precedes them: 57 bytes at most, to the end of a cache line.
const HEAD: usize = 64;
/// Number of the field that holds a KV frame in a handoff's message.
pub(crate) const ROWS: u32 = 1;
/// Number of the field that holds rows in a KV frame.
pub(crate) const DATA: u32 = 7;

/// A message with what precedes it, and the bytes of rows in it.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) rows: usize,
}

impl Encoded {
    /// A message without rows.
    pub(crate) fn message(message: &HandoffFrame) -> Self {
        let length = message.encoded_len();
        let mut bytes = BytesMut::with_capacity(PREFIX + length);
        prefix(&mut bytes, length);
        bytes.put(&*message.encode_to_vec());
        Self {
            bytes: bytes.freeze(),
            rows: 0,
        }
    }

    /// `frame` with a copy of `data`, and the checksum of that. Memory has room for `most` bytes of rows.
    pub(crate) fn rows(frame: &mut KvFrame, data: &[u8], spare: &Spare, most: usize) -> Self {
        let mut bytes = spare.take(HEAD + most.max(data.len()));
        bytes.resize(HEAD, 0);
        bytes.extend_from_slice(data);
        // Of the copy: the rows themselves may lie far, and are read once so.
        frame.crc32c = crc_fast::crc32_iscsi(&bytes[HEAD..]);
        let head = head(frame, data.len());
        let start = HEAD - head.len();
        bytes[start..HEAD].copy_from_slice(&head);
        Self {
            bytes: spare.lend(bytes).slice(start..),
            rows: data.len(),
        }
    }

    /// The message again.
    #[cfg(test)]
    pub(crate) fn decoded(&self) -> HandoffFrame {
        HandoffFrame::decode(self.bytes.slice(PREFIX..)).expect("ours")
    }
}

fn prefix(bytes: &mut BytesMut, length: usize) {
    bytes.put_u8(0);
    #[allow(clippy::cast_possible_truncation)] // within MESSAGE_BYTES
    bytes.put_u32(length as u32);
}

/// All of a message up to the `length` bytes of its rows, which are the last field of the last field. `frame` has none.
fn head(frame: &KvFrame, length: usize) -> BytesMut {
    let data = key_len(DATA) + encoded_len_varint(length as u64) + length;
    let inner = frame.encoded_len() + data;
    let mut bytes = BytesMut::with_capacity(HEAD);
    prefix(
        &mut bytes,
        key_len(ROWS) + encoded_len_varint(inner as u64) + inner,
    );
    encode_key(ROWS, WireType::LengthDelimited, &mut bytes);
    encode_varint(inner as u64, &mut bytes);
    frame.encode_raw(&mut bytes);
    encode_key(DATA, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use ds4_proto::v1::handoff_frame::Frame;
    use ds4_proto::v1::{Beat, Commit};

    use super::*;

    /// Byte for byte what the generated code makes of the same message.
    #[test]
    fn messages_are_those_of_the_protocol() {
        let spare = Spare::default();
        let numbers = [0, 1, 300, u32::MAX];
        for (i, length) in [0, 1, 583, 70_000].into_iter().enumerate() {
            let rows = KvFrame {
                epoch: u64::from(numbers[i]) << 32,
                layer: numbers[i],
                kind: 5,
                first_row: u64::MAX >> (i * 16),
                rows: numbers[3 - i],
                ..KvFrame::default()
            };
            let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let encoded = Encoded::rows(&mut rows.clone(), &data, &spare, 1000);
            let expected = KvFrame {
                crc32c: crc_fast::crc32_iscsi(&data),
                data: data.into(),
                ..rows
            };
            assert_eq!(encoded.rows, length);
            assert_sent(&encoded, Frame::Rows(expected), length > 0);
        }
        let commit = Commit {
            frames: 7,
            ..Commit::default()
        };
        for frame in [Frame::Beat(Beat { frontier: 9 }), Frame::Commit(commit)] {
            let message = HandoffFrame {
                frame: Some(frame.clone()),
            };
            assert_sent(&Encoded::message(&message), frame, true);
        }
    }

    /// An empty field may be said or left out.
    fn assert_sent(encoded: &Encoded, frame: Frame, bytes_too: bool) {
        let message = HandoffFrame { frame: Some(frame) };
        let (head, body) = encoded.bytes.split_at(PREFIX);
        assert_eq!(head[0], 0);
        assert_eq!(head[1..], u32::try_from(body.len()).expect("small").to_be_bytes());
        assert_eq!(encoded.decoded(), message);
        assert!(!bytes_too || body == message.encode_to_vec());
    }
}
