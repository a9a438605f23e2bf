//! Whether bytes are a row at all: what a receiver asks before it keeps them.

use std::ops::BitAnd;

use super::{KV_BLOCK, indexer_row_bytes, kv_row_bytes};

/// Why bytes are not a row that [`encode_kv`](super::encode_kv) or [`encode_indexer`](super::encode_indexer) can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row has another length.
    #[error("row bytes: expected {expected}, found {found}")]
    Length {
        /// Bytes of such a row.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A code that stands for no number.
    #[error("code {at}: expected a number, found E4M3 code {found:#04x}")]
    Code {
        /// Index in the row.
        at: usize,
        /// The byte.
        found: u8,
    },
    /// A scale that no block can have.
    #[error("scale {at}: expected an exponent byte of {least} to 254, found {found}")]
    Scale {
        /// Index of the block.
        at: usize,
        /// Smallest byte.
        least: u8,
        /// The byte.
        found: u8,
    },
    /// A tail value that is infinite or no number.
    #[error("tail value {at}: expected a finite half, found bits {found:#06x}")]
    Tail {
        /// Index in the tail.
        at: usize,
        /// The half's bits.
        found: u16,
    },
}

/// Smallest exponent byte of a KV row: the floor 1e-4 / 448 rounds up to 2^-22.
const KV_LEAST: u8 = 127 - 22;

/// Checks that `bytes` is a KV row that some values encode to; `width` values, the last `tail` rotary.
///
/// # Errors
/// Names the first code, scale or tail value that no row has.
pub fn check_kv(bytes: &[u8], width: usize, tail: usize) -> Result<(), RowError> {
    length(bytes, kv_row_bytes(width, tail))?;
    let (codes, rest) = bytes.split_at(width - tail);
    let (exponents, rotary) = rest.split_at((width - tail) / KV_BLOCK);
    if let Some((at, found)) = saturated(codes.iter().copied(), 0x7f) {
        return Err(RowError::Code { at, found });
    }
    scales(exponents, KV_LEAST)?;
    let halves = rotary
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    if let Some((at, found)) = saturated(halves, 0x7c00) {
        return Err(RowError::Tail { at, found });
    }
    Ok(())
}

/// The first value that has all bits of `mask`. A maximum over all comes first, which the compiler computes many at a time: nearly always there is none.
fn saturated<T>(values: impl Iterator<Item = T> + Clone, mask: T) -> Option<(usize, T)>
where
    T: Copy + Default + Ord + BitAnd<Output = T>,
{
    let most = values
        .clone()
        .fold(T::default(), |most, value| most.max(value & mask));
    let mut numbered = values.enumerate();
    (most == mask).then(|| numbered.find(|(_, value)| *value & mask == mask))?
}

/// Checks that `bytes` is an indexer row of `width` values; every code is a number, so only scales can be wrong.
///
/// # Errors
/// Names the first scale that no row has.
pub fn check_indexer(bytes: &[u8], width: usize) -> Result<(), RowError> {
    length(bytes, indexer_row_bytes(width))?;
    scales(&bytes[width / 2..], 1)
}

fn length(bytes: &[u8], expected: usize) -> Result<(), RowError> {
    if bytes.len() == expected {
        Ok(())
    } else {
        Err(RowError::Length {
            expected,
            found: bytes.len(),
        })
    }
}

fn scales(exponents: &[u8], least: u8) -> Result<(), RowError> {
    match exponents.iter().position(|byte| !(least..=254).contains(byte)) {
        Some(at) => Err(RowError::Scale {
            at,
            least,
            found: exponents[at],
        }),
        None => Ok(()),
    }
}
