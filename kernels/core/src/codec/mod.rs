//! The canonical bytes of a KV row: what is stored, sent and loaded, without ever rounding twice.
//!
//! A window or compressed row of `width` values keeps its first `width - tail` values as E4M3 codes with one power-of-two scale per 64, and its rotary tail
//! as `f16`. An indexer row keeps E2M1 codes, two to a byte, with one power-of-two scale per 32.
//!
//! Layout of a KV row: codes, scale exponents, tail. Of an indexer row: codes, scale exponents. A scale exponent `e` is stored as `e + 127`.

mod check;
mod numbers;

pub use check::{RowError, check_indexer, check_kv};
pub(crate) use numbers::e2m1_twice;

use numbers::{E2M1_MAX, E4M3_MAX, e2m1_code, e4m3_code, e4m3_value, exponent, half_code, half_value, power};

/// Values per scale of a KV row.
pub const KV_BLOCK: usize = 64;
/// Values per scale of an indexer row.
pub const INDEXER_BLOCK: usize = 32;
/// Smallest block magnitude that gets a scale of its own in a KV row (DeepSeek's reference).
const KV_FLOOR: f32 = 1e-4;
/// Six times 2^-126: the smallest indexer scale is a normal number.
const INDEXER_FLOOR: f32 = 7.052_966e-38;

/// Bytes of a KV row of `width` values whose last `tail` are rotary.
#[must_use]
pub const fn kv_row_bytes(width: usize, tail: usize) -> usize {
    let codes = width - tail;
    codes + codes / KV_BLOCK + 2 * tail
}

/// Bytes of an indexer row of `width` values.
#[must_use]
pub const fn indexer_row_bytes(width: usize) -> usize {
    width / 2 + width / INDEXER_BLOCK
}

/// Writes the canonical bytes of one KV row to `out`; `tail` rotary values at the end.
///
/// # Panics
/// When `out` is not [`kv_row_bytes`] long.
#[inline(always)]
pub fn encode_kv(row: &[f32], tail: usize, out: &mut [u8]) {
    assert_eq!(
        out.len(),
        kv_row_bytes(row.len(), tail),
        "bytes of a KV row of {} values",
        row.len()
    );
    let (body, rotary) = row.split_at(row.len() - tail);
    let (codes, rest) = out.split_at_mut(body.len());
    let (exponents, halves) = rest.split_at_mut(body.len() / KV_BLOCK);
    let blocks = body.chunks_exact(KV_BLOCK).zip(codes.chunks_exact_mut(KV_BLOCK));
    for ((values, codes), stored) in blocks.zip(exponents) {
        let e = exponent(values, E4M3_MAX, KV_FLOOR);
        let inverse = power(-e);
        codes
            .iter_mut()
            .zip(values)
            .for_each(|(code, x)| *code = e4m3_code(x * inverse));
        *stored = biased(e);
    }
    for (pair, x) in halves.chunks_exact_mut(2).zip(rotary) {
        pair.copy_from_slice(&half_code(*x).to_le_bytes());
    }
}

/// The values of one KV row's bytes.
///
/// # Panics
/// When `bytes` is not [`kv_row_bytes`] long for `out.len()` and `tail`.
#[inline(always)]
pub fn decode_kv(bytes: &[u8], tail: usize, out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        kv_row_bytes(out.len(), tail),
        "bytes of a KV row of {} values",
        out.len()
    );
    let (body, rotary) = out.split_at_mut(out.len() - tail);
    let (codes, rest) = bytes.split_at(body.len());
    let (exponents, halves) = rest.split_at(body.len() / KV_BLOCK);
    let blocks = body.chunks_exact_mut(KV_BLOCK).zip(codes.chunks_exact(KV_BLOCK));
    for ((values, codes), exponent) in blocks.zip(exponents) {
        let scale = stored_power(*exponent);
        values
            .iter_mut()
            .zip(codes)
            .for_each(|(value, code)| *value = e4m3_value(*code) * scale);
    }
    for (value, pair) in rotary.iter_mut().zip(halves.chunks_exact(2)) {
        *value = half_value(u16::from_le_bytes([pair[0], pair[1]]));
    }
}

/// Hadamard-transforms one indexer row in place and writes its canonical bytes to `out`.
///
/// # Panics
/// When `out` is not [`indexer_row_bytes`] long.
#[inline(always)]
pub fn encode_indexer(row: &mut [f32], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        indexer_row_bytes(row.len()),
        "bytes of an indexer row of {} values",
        row.len()
    );
    hadamard(row);
    let (codes, exponents) = out.split_at_mut(row.len() / 2);
    let blocks = row
        .chunks_exact(INDEXER_BLOCK)
        .zip(codes.chunks_exact_mut(INDEXER_BLOCK / 2));
    for ((values, codes), stored) in blocks.zip(exponents) {
        let e = exponent(values, E2M1_MAX, INDEXER_FLOOR);
        let inverse = power(-e);
        for (pair, code) in values.chunks_exact(2).zip(codes) {
            *code = e2m1_code(pair[0] * inverse) | e2m1_code(pair[1] * inverse) << 4;
        }
        *stored = biased(e);
    }
}

/// The values of one indexer row's bytes, in the transformed space where scores are taken.
///
/// # Panics
/// When `bytes` is not [`indexer_row_bytes`] long for `out.len()`.
pub fn decode_indexer(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        indexer_row_bytes(out.len()),
        "bytes of an indexer row of {} values",
        out.len()
    );
    let (codes, exponents) = bytes.split_at(out.len() / 2);
    let blocks = out
        .chunks_exact_mut(INDEXER_BLOCK)
        .zip(codes.chunks_exact(INDEXER_BLOCK / 2));
    for ((values, codes), exponent) in blocks.zip(exponents) {
        let scale = stored_power(*exponent) * 0.5;
        for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
            pair[0] = f32::from(e2m1_twice(code & 15)) * scale;
            pair[1] = f32::from(e2m1_twice(code >> 4)) * scale;
        }
    }
}

/// The power of two that a stored exponent stands for: it is an `f32` exponent field already.
#[inline(always)]
pub(crate) const fn stored_power(byte: u8) -> f32 {
    f32::from_bits((byte as u32) << 23)
}

/// Values that the first steps of the transform mix among themselves.
const MIXED: usize = 16;

/// Walsh-Hadamard transform with factor `n^-1/2`; `row.len()` is a power of two.
#[inline(always)]
pub fn hadamard(row: &mut [f32]) {
    let (groups, rest) = row.as_chunks_mut::<MIXED>();
    for values in groups {
        for step in [1, 2, 4, 8] {
            let old = *values;
            for i in 0..MIXED {
                let other = old[i ^ step];
                values[i] = if i & step == 0 {
                    old[i] + other
                } else {
                    other - old[i]
                };
            }
        }
    }
    // A row shorter than a group has all its steps below.
    let mut step = if rest.is_empty() { MIXED } else { 1 };
    while step < row.len() {
        for pair in row.chunks_exact_mut(2 * step) {
            let (low, high) = pair.split_at_mut(step);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        step *= 2;
    }
    #[allow(clippy::cast_precision_loss)] // a row has a few hundred values
    let scale = 1.0 / (row.len() as f32).sqrt();
    row.iter_mut().for_each(|x| *x *= scale);
}

fn biased(e: i32) -> u8 {
    u8::try_from(e + 127).unwrap_or(u8::MAX)
}
