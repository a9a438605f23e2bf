//! A chunk's activations as frames.

use bytes::{Bytes, BytesMut};
use ds4_model::{Hidden, TokenHash};
use ds4_proto::v1::ActivationFrame;

use super::{Difference, differs, size_of_chunk};
use crate::chunk::Chunk;

/// A computed chunk as frames of at most `frame_bytes`; the first carries the tokens.
pub(crate) fn activation_frames(
    session: &str,
    epoch: u64,
    chunk: &Chunk,
    frame_bytes: usize,
) -> Vec<ActivationFrame> {
    let values = chunk.hidden.as_ref().map_or(&[][..], Hidden::as_slice);
    let mut bytes = BytesMut::with_capacity(values.len() * 4);
    values
        .iter()
        .for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    let bytes = bytes.freeze();
    let total = bytes.len() as u64;
    let pieces = pieces(&bytes, frame_bytes);
    let frame = |(i, (offset, data)): (usize, (usize, Bytes))| ActivationFrame {
        session: session.to_owned(),
        epoch,
        start: chunk.start,
        tokens: if i == 0 { chunk.tokens.clone() } else { Vec::new() },
        hash_before: chunk.hash_before.value(),
        last: chunk.last,
        offset: offset as u64,
        total,
        crc32c: crc_fast::crc32_iscsi(&data),
        data,
    };
    pieces.enumerate().map(frame).collect()
}

fn pieces(bytes: &Bytes, size: usize) -> impl Iterator<Item = (usize, Bytes)> + '_ {
    (0..bytes.len())
        .step_by(size.max(1))
        .map(move |at| (at, bytes.slice(at..(at + size).min(bytes.len()))))
}

/// Puts a chunk's pieces together again.
#[derive(Debug)]
pub(crate) struct Assembler {
    width: usize,
    most_tokens: usize,
    open: Option<(Chunk, Vec<u8>, usize)>,
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
        let Some((chunk, bytes, total)) = &mut self.open else {
            return Ok(None);
        };
        if frame.start != chunk.start {
            return Err(differs("start of an activation piece", chunk.start, frame.start));
        }
        if frame.offset != bytes.len() as u64 || bytes.len() + frame.data.len() > *total {
            return Err(differs(
                "offset of an activation piece",
                bytes.len(),
                frame.offset,
            ));
        }
        bytes.extend_from_slice(&frame.data);
        if bytes.len() < *total {
            return Ok(None);
        }
        let Some((mut chunk, bytes, _)) = self.open.take() else {
            return Ok(None);
        };
        let values = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        chunk.hidden = Hidden::from_vec(self.width, values);
        Ok(Some(chunk))
    }

    /// Checks the announced size before any of it is allocated.
    fn begin(&self, frame: &ActivationFrame) -> Result<(Chunk, Vec<u8>, usize), Difference> {
        size_of_chunk(frame.tokens.len(), self.most_tokens)?;
        let total = frame.tokens.len() * self.width * 4;
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
        Ok((chunk, Vec::with_capacity(total), total))
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
        let frames = activation_frames("s", 1, &chunk, FRAME_BYTES);
        assert_eq!(frames.len(), 3);
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
        let sound = activation_frames("s", 1, &chunk(5, FRAME_BYTES / 8), FRAME_BYTES);
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
