//! Activations and KV rows as frames: cut to size, checksummed, checked before they are believed.

use bytes::{Bytes, BytesMut};
use ds4_model::{Hidden, Kv, KvKind, KvStaging, TokenHash};
use ds4_proto::FRAME_BYTES;
use ds4_proto::v1::{
    self, ActivationFrame, Commit, HandoffFrame, KvFrame, RowCount, TokenChunk, handoff_frame,
};
use sha2::{Digest, Sha256};

use crate::chunk::Chunk;

/// What a frame must be and is not: field, expected, found.
pub(crate) type Difference = (&'static str, String, String);

fn differs(field: &'static str, expected: impl ToString, found: impl ToString) -> Difference {
    (field, expected.to_string(), found.to_string())
}

pub(crate) fn token_chunk(session: &str, epoch: u64, chunk: &Chunk) -> TokenChunk {
    TokenChunk {
        session: session.to_owned(),
        epoch,
        start: chunk.start,
        tokens: chunk.tokens.clone(),
        hash_before: chunk.hash_before.value(),
        last: chunk.last,
    }
}

pub(crate) fn from_token_chunk(chunk: TokenChunk, most: usize) -> Result<Chunk, Difference> {
    size_of_chunk(chunk.tokens.len(), most)?;
    let hash_before = TokenHash::from_value(chunk.hash_before);
    Ok(Chunk {
        start: chunk.start,
        tokens: chunk.tokens,
        hash_before,
        last: chunk.last,
        hidden: None,
    })
}

fn size_of_chunk(tokens: usize, most: usize) -> Result<(), Difference> {
    if (1..=most).contains(&tokens) {
        Ok(())
    } else {
        Err(differs("tokens in a chunk", format!("1 to {most}"), tokens))
    }
}

/// A computed chunk as frames of at most [`FRAME_BYTES`]; the first carries the tokens.
pub(crate) fn activation_frames(session: &str, epoch: u64, chunk: &Chunk) -> Vec<ActivationFrame> {
    let values = chunk.hidden.as_ref().map_or(&[][..], Hidden::as_slice);
    let mut bytes = BytesMut::with_capacity(values.len() * 4);
    values
        .iter()
        .for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    let bytes = bytes.freeze();
    let total = bytes.len() as u64;
    let pieces = pieces(&bytes, FRAME_BYTES);
    let frame = |(i, (offset, data)): (usize, (usize, Bytes))| ActivationFrame {
        session: session.to_owned(),
        epoch,
        start: chunk.start,
        tokens: if i == 0 { chunk.tokens.clone() } else { Vec::new() },
        hash_before: chunk.hash_before.value(),
        last: chunk.last,
        offset: offset as u64,
        total,
        crc32c: crc32c::crc32c(&data),
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
        let found = crc32c::crc32c(&frame.data);
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

const fn to_wire(kind: KvKind) -> v1::KvKind {
    match kind {
        KvKind::Window => v1::KvKind::Window,
        KvKind::Compressed => v1::KvKind::Compressed,
        KvKind::Indexer => v1::KvKind::Indexer,
        KvKind::CompressorState => v1::KvKind::CompressorState,
        KvKind::IndexerState => v1::KvKind::IndexerState,
    }
}

fn from_wire(kind: i32) -> Result<KvKind, Difference> {
    let known = KvKind::ALL
        .into_iter()
        .find(|known| to_wire(*known) as i32 == kind);
    known.ok_or_else(|| differs("kind of KV rows", "1 to 5", kind))
}

/// Sends a shard: append-only rows as they come, the rest at the end.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    epoch: u64,
    sent: std::collections::BTreeMap<(usize, KvKind), u64>,
    digest: Sha256,
    frames: u64,
    bytes: u64,
}

#[allow(clippy::cast_possible_truncation)] // layer numbers; rows of one frame
impl Sender {
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    /// Rows that came since the last call; with `all`, also the window and the states.
    pub(crate) fn rows(&mut self, kv: &Kv, all: bool) -> Vec<HandoffFrame> {
        let mut frames = Vec::new();
        for layer in kv.span().layers() {
            for kind in kv
                .layout()
                .kinds(layer)
                .iter()
                .copied()
                .filter(|kind| all || kind.append_only())
            {
                self.kind(kv, layer, kind, &mut frames);
            }
        }
        frames
    }

    fn kind(&mut self, kv: &Kv, layer: usize, kind: KvKind, frames: &mut Vec<HandoffFrame>) {
        let rows = kv.rows(layer, kind);
        let from = self.sent.get(&(layer, kind)).copied().unwrap_or(rows.start);
        let Ok(bytes) = kv.read(layer, kind, from..rows.end) else {
            return;
        };
        let row_bytes = kv.layout().row_bytes(layer, kind);
        let per_frame = (FRAME_BYTES / row_bytes).max(1);
        for (first, data) in (from..)
            .step_by(per_frame)
            .zip(bytes.chunks(per_frame * row_bytes))
        {
            self.digest.update(data);
            (self.frames, self.bytes) = (self.frames + 1, self.bytes + data.len() as u64);
            let frame = KvFrame {
                epoch: self.epoch,
                layer: layer as u32,
                kind: to_wire(kind).into(),
                first_row: first,
                rows: (data.len() / row_bytes) as u32,
                crc32c: crc32c::crc32c(data),
                data: Bytes::copy_from_slice(data),
            };
            frames.push(HandoffFrame {
                frame: Some(handoff_frame::Frame::Rows(frame)),
            });
        }
        self.sent.insert((layer, kind), rows.end);
    }

    /// The shard is complete.
    pub(crate) fn commit(self, kv: &Kv, compute_us: u64, span: String) -> HandoffFrame {
        let kinds = kv
            .span()
            .layers()
            .flat_map(|layer| kv.layout().kinds(layer).iter().map(move |kind| (layer, *kind)));
        let count = |(layer, kind): (usize, KvKind)| {
            let rows = kv.rows(layer, kind);
            RowCount {
                layer: layer as u32,
                kind: to_wire(kind).into(),
                first: rows.start,
                end: rows.end,
            }
        };
        let commit = Commit {
            epoch: self.epoch,
            frontier: kv.frontier(),
            token_hash: kv.hash().value(),
            rows: kinds.map(count).collect(),
            frames: self.frames,
            bytes: self.bytes,
            digest: Bytes::copy_from_slice(&self.digest.finalize()),
            compute_us,
            span,
        };
        HandoffFrame {
            frame: Some(handoff_frame::Frame::Commit(commit)),
        }
    }
}

/// Why a received frame is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    Frame(Difference),
    Kv(ds4_model::KvError),
}

impl From<Difference> for Refusal {
    fn from(difference: Difference) -> Self {
        Self::Frame(difference)
    }
}

/// Receives a shard. Nothing of it is visible before [`Receiver::commit`].
#[derive(Debug)]
pub(crate) struct Receiver {
    epoch: u64,
    staging: KvStaging,
    digest: Sha256,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
}

impl Receiver {
    pub(crate) fn new(epoch: u64, staging: KvStaging) -> Self {
        Self {
            epoch,
            staging,
            digest: Sha256::new(),
            frames: 0,
            bytes: 0,
            rows: 0,
        }
    }

    pub(crate) fn rows(&mut self, frame: &KvFrame) -> Result<(), Refusal> {
        self.fence(frame.epoch)?;
        let found = crc32c::crc32c(&frame.data);
        if found != frame.crc32c {
            return Err(differs(
                "KV crc32c",
                format!("{:08x}", frame.crc32c),
                format!("{found:08x}"),
            )
            .into());
        }
        let kind = from_wire(frame.kind)?;
        let rows = self
            .staging
            .write(frame.layer as usize, kind, frame.first_row, &frame.data)
            .map_err(Refusal::Kv)?;
        if rows != u64::from(frame.rows) {
            return Err(differs("rows of a KV frame", frame.rows, rows).into());
        }
        self.digest.update(&frame.data);
        (self.frames, self.bytes, self.rows) = (
            self.frames + 1,
            self.bytes + frame.data.len() as u64,
            self.rows + rows,
        );
        Ok(())
    }

    /// Checks what the sender says against what came and against the prompt; makes the shard valid.
    pub(crate) fn commit(self, commit: &Commit, frontier: u64, hash: TokenHash) -> Result<Kv, Refusal> {
        self.fence(commit.epoch)?;
        let digest: String = self
            .digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let theirs: String = commit.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let fields = [
            ("frontier", frontier.to_string(), commit.frontier.to_string()),
            (
                "token hash",
                hash.to_string(),
                TokenHash::from_value(commit.token_hash).to_string(),
            ),
            ("frames", self.frames.to_string(), commit.frames.to_string()),
            ("bytes", self.bytes.to_string(), commit.bytes.to_string()),
            ("digest", digest, theirs),
        ];
        if let Some(difference) = fields.into_iter().find(|(_, expected, found)| expected != found) {
            return Err(difference.into());
        }
        let kv = self.staging.commit(frontier, hash).map_err(Refusal::Kv)?;
        for count in &commit.rows {
            let rows = kv.rows(count.layer as usize, from_wire(count.kind)?);
            if rows != (count.first..count.end) && !(rows.is_empty() && count.first == count.end) {
                let found = format!("{}..{}", count.first, count.end);
                return Err(
                    differs("row counts", format!("{rows:?} in layer {}", count.layer), found).into(),
                );
            }
        }
        Ok(kv)
    }

    fn fence(&self, epoch: u64) -> Result<(), Difference> {
        if epoch == self.epoch {
            Ok(())
        } else {
            Err(differs("epoch", self.epoch, epoch))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let frames = activation_frames("s", 1, &chunk);
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
        let sound = activation_frames("s", 1, &chunk(5, FRAME_BYTES / 8));
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
