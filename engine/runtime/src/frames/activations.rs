//! A chunk's activations as frames.

use bytes::Bytes;
use ds4_model::{Hidden, TokenHash};
use ds4_proto::v1::ActivationFrame;

use super::{Difference, differs, size_of_chunk};
use crate::chunk::Chunk;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "activations travel as they lie in memory"
);

/// Values as the bytes that they are. A chunk of Flash has 33 MB of them: they are copied only where they leave the process.
struct Values(Vec<f32>);

impl AsRef<[u8]> for Values {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Frames of at most `frame_bytes` that a chunk of `tokens` tokens of `width` values makes.
pub(crate) const fn frames_of_chunk(tokens: usize, width: usize, frame_bytes: usize) -> usize {
    (tokens * width * size_of::<f32>()).div_ceil(frame_bytes)
}

/// A computed chunk as frames of at most `frame_bytes`; the first carries the tokens.
pub(crate) fn activation_frames(
    session: &str,
    epoch: u64,
    mut chunk: Chunk,
    frame_bytes: usize,
) -> impl Iterator<Item = ActivationFrame> + use<> {
    let values = chunk.hidden.take().map(Hidden::into_vec).unwrap_or_default();
    let bytes = Bytes::from_owner(Values(values));
    let total = bytes.len() as u64;
    let session = session.to_owned();
    let frame = move |(offset, data): (usize, Bytes)| ActivationFrame {
        session: session.clone(),
        epoch,
        start: chunk.start,
        tokens: std::mem::take(&mut chunk.tokens),
        hash_before: chunk.hash_before.value(),
        last: chunk.last,
        offset: offset as u64,
        total,
        crc32c: crc_fast::crc32_iscsi(&data),
        data,
    };
    pieces(bytes, frame_bytes).map(frame)
}

fn pieces(bytes: Bytes, size: usize) -> impl Iterator<Item = (usize, Bytes)> {
    (0..bytes.len())
        .step_by(size.max(1))
        .map(move |at| (at, bytes.slice(at..(at + size).min(bytes.len()))))
}

/// A chunk whose pieces come.
#[derive(Debug)]
struct Open {
    chunk: Chunk,
    values: Vec<f32>,
    /// Bytes of them that are here.
    filled: usize,
}

/// Puts a chunk's pieces together again.
#[derive(Debug)]
pub(crate) struct Assembler {
    width: usize,
    most_tokens: usize,
    open: Option<Open>,
}

impl Assembler {
    /// For chunks of at most `most_tokens` tokens, `width` values each.
    pub(crate) const fn new(width: usize, most_tokens: usize) -> Self {
        Self {
            width,
            most_tokens,
            open: None,
        }
    }

    /// Takes one piece; gives the chunk when it was the last one.
    pub(crate) fn push(&mut self, frame: ActivationFrame) -> Result<Option<Chunk>, Difference> {
        if frame == ActivationFrame::default() {
            return Ok(None);
        }
        let found = crc_fast::crc32_iscsi(&frame.data);
        if found != frame.crc32c {
            return Err(differs(
                "activation crc32c",
                format!("{:08x}", frame.crc32c),
                format!("{found:08x}"),
            ));
        }
        if self.open.is_none() {
            self.open = Some(self.begin(&frame)?);
        }
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        if frame.start != open.chunk.start {
            let expected = open.chunk.start;
            return Err(differs("start of an activation piece", expected, frame.start));
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut open.values);
        let end = open.filled + frame.data.len();
        if frame.offset != open.filled as u64 || end > bytes.len() {
            return Err(differs(
                "offset of an activation piece",
                open.filled,
                frame.offset,
            ));
        }
        bytes[open.filled..end].copy_from_slice(&frame.data);
        open.filled = end;
        if end < bytes.len() {
            return Ok(None);
        }
        Ok(self.open.take().map(|open| Chunk {
            hidden: Hidden::from_vec(self.width, open.values),
            ..open.chunk
        }))
    }

    /// Checks the announced size before any of it is allocated.
    fn begin(&self, frame: &ActivationFrame) -> Result<Open, Difference> {
        size_of_chunk(frame.tokens.len(), self.most_tokens)?;
        let values = frame.tokens.len() * self.width;
        let total = values * size_of::<f32>();
        if frame.total != total as u64 {
            return Err(differs("bytes of a chunk's activations", total, frame.total));
        }
        let (tokens, hash_before) = (frame.tokens.clone(), TokenHash::from_value(frame.hash_before));
        let chunk = Chunk {
            start: frame.start,
            tokens,
            hash_before,
            last: frame.last,
            hidden: None,
        };
        Ok(Open {
            chunk,
            values: vec![0.0; values],
            filled: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_proto::FRAME_BYTES;

    fn chunk(tokens: usize, width: usize) -> Chunk {
        let values = (0..tokens * width).map(|i| i as f32 * 0.5).collect();
        let tokens = (0..tokens as u32).collect();
        Chunk {
            start: 7,
            tokens,
            hash_before: TokenHash::of(&[1]),
            last: true,
            hidden: Hidden::from_vec(width, values),
        }
    }

    #[test]
    fn a_chunk_larger_than_a_frame_arrives_as_it_was() {
        let chunk = chunk(5, FRAME_BYTES / 4 / 2);
        let frames: Vec<_> = activation_frames("s", 1, chunk.clone(), FRAME_BYTES).collect();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames_of_chunk(5, FRAME_BYTES / 4 / 2, FRAME_BYTES), 3);
        let mut assembler = Assembler::new(FRAME_BYTES / 8, 5);
        let mut whole = None;
        for frame in frames {
            whole = assembler.push(frame).expect("sound");
        }
        let whole = whole.expect("complete");
        assert_eq!(
            (whole.start, &whole.tokens, whole.hash_before),
            (7, &chunk.tokens, chunk.hash_before)
        );
        assert_eq!(whole.hidden, chunk.hidden);
    }

    #[test]
    fn a_flipped_bit_a_wrong_total_and_a_missing_piece_are_refused_by_name() {
        let sound: Vec<_> = activation_frames("s", 1, chunk(5, FRAME_BYTES / 8), FRAME_BYTES).collect();
        let refusal = |frames: Vec<ActivationFrame>| {
            let mut assembler = Assembler::new(FRAME_BYTES / 8, 5);
            frames
                .into_iter()
                .find_map(|frame| assembler.push(frame).err())
                .expect("refused")
                .0
        };
        let mut flipped = sound.clone();
        let mut data = flipped[0].data.to_vec();
        data[0] ^= 1;
        flipped[0].data = data.into();
        assert_eq!(refusal(flipped), "activation crc32c");
        let mut larger = sound.clone();
        larger[0].total = u64::MAX;
        assert_eq!(refusal(larger), "bytes of a chunk's activations");
        assert_eq!(
            refusal(vec![sound[0].clone(), sound[2].clone()]),
            "offset of an activation piece"
        );
        let mut many = sound.clone();
        many[0].tokens = vec![0; 6];
        assert_eq!(refusal(many), "tokens in a chunk");
    }
}
