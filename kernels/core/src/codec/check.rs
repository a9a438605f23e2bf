//! Whether bytes are a row at all: what a receiver asks before it keeps them.

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
    let code = |code: u8| code & 0x7f;
    // A maximum over all, which the compiler computes many at a time; where the fault is only matters once there is one.
    if codes.iter().fold(0, |most, byte| most.max(code(*byte))) == 0x7f {
        let fault = codes.iter().enumerate().find(|(_, byte)| code(**byte) == 0x7f);
        if let Some((at, &found)) = fault {
            return Err(RowError::Code { at, found });
        }
    }
    scales(exponents, KV_LEAST)?;
    let halves = || {
        rotary
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
    };
    let exponent = |half: u16| half & 0x7c00;
    if halves().fold(0, |most, half| most.max(exponent(half))) == 0x7c00 {
        let fault = halves().enumerate().find(|(_, half)| exponent(*half) == 0x7c00);
        if let Some((at, found)) = fault {
            return Err(RowError::Tail { at, found });
        }
    }
    Ok(())
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
