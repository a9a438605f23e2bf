//! Activations and KV rows as frames: cut to size, checksummed, checked before they are believed.

mod activations;
mod encoded;
mod receiver;
mod sender;
mod spare;

pub(crate) use activations::{Assembler, activation_frames, frames_of_chunk};
pub(crate) use encoded::{DATA, Encoded, PREFIX, ROWS};
pub(crate) use receiver::{Receiver, Refusal};
pub(crate) use sender::{Sender, Work};

use ds4_model::{KvKind, TokenHash};
use ds4_proto::v1::{self, KvFrame, TokenChunk};
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

pub(crate) const fn to_wire(kind: KvKind) -> v1::KvKind {
    match kind {
        KvKind::Window => v1::KvKind::Window,
        KvKind::Compressed => v1::KvKind::Compressed,
        KvKind::Indexer => v1::KvKind::Indexer,
        KvKind::CompressorState => v1::KvKind::CompressorState,
        KvKind::IndexerState => v1::KvKind::IndexerState,
    }
}

pub(crate) fn from_wire(kind: i32) -> Result<KvKind, Difference> {
    let known = KvKind::ALL
        .into_iter()
        .find(|known| to_wire(*known) as i32 == kind);
    known.ok_or_else(|| differs("kind of KV rows", "1 to 5", kind))
}

/// Takes one frame into the digest of its handoff: what it holds, how much, and the checksum that guards its bytes.
pub(crate) fn digest(digest: &mut Sha256, frame: &KvFrame) {
    let KvFrame {
        layer,
        kind,
        first_row,
        rows,
        crc32c,
        epoch: _,
        data: _,
    } = frame;
    for number in [*layer, kind.cast_unsigned(), *rows, *crc32c] {
        digest.update(number.to_le_bytes());
    }
    digest.update(first_row.to_le_bytes());
}
