//! The canonical bytes of a KV row: what is stored, sent and loaded, without ever rounding twice.
//!
//! A window or compressed row of `width` values keeps its first `width - tail` values as E4M3 codes with one power-of-two scale per 64, and its rotary tail
//! as `f16`. An indexer row keeps E2M1 codes, two to a byte, with one power-of-two scale per 32.
//!
//! Layout of a KV row: codes, scale exponents, tail. Of an indexer row: codes, scale exponents. A scale exponent `e` is stored as `e + 127`.

use half::f16;

/// Values per scale of a KV row.
pub const KV_BLOCK: usize = 64;
/// Values per scale of an indexer row.
pub const INDEXER_BLOCK: usize = 32;
/// The largest E4M3 value.
const E4M3_MAX: f32 = 448.0;
/// The largest E2M1 value.
const E2M1_MAX: f32 = 6.0;
/// Smallest block magnitude that gets a scale of its own in a KV row (DeepSeek's reference).
const KV_FLOOR: f32 = 1e-4;
/// Six times 2^-126: the smallest indexer scale is a normal number.
const INDEXER_FLOOR: f32 = 7.052_966e-38;
/// Magnitudes of the eight E2M1 codes.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

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

/// Appends the canonical bytes of one KV row to `out`; `tail` rotary values at the end.
pub fn encode_kv(row: &[f32], tail: usize, out: &mut Vec<u8>) {
    let (body, rotary) = row.split_at(row.len() - tail);
    let exponents: Vec<i32> = body
        .chunks(KV_BLOCK)
        .map(|block| exponent(block, E4M3_MAX, KV_FLOOR))
        .collect();
    for (block, e) in body.chunks(KV_BLOCK).zip(&exponents) {
        out.extend(block.iter().map(|x| e4m3_code(x * power(-e))));
    }
    out.extend(exponents.iter().map(|e| biased(*e)));
    out.extend(rotary.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
}

/// The values of one KV row's bytes.
///
/// # Panics
/// When `bytes` is not [`kv_row_bytes`] long for `out.len()` and `tail`.
pub fn decode_kv(bytes: &[u8], tail: usize, out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        kv_row_bytes(out.len(), tail),
        "bytes of a KV row of {} values",
        out.len()
    );
    let body = out.len() - tail;
    let (codes, rest) = bytes.split_at(body);
    let (exponents, rotary) = rest.split_at(body / KV_BLOCK);
    let blocks = out[..body].chunks_mut(KV_BLOCK).zip(codes.chunks(KV_BLOCK));
    for ((values, codes), exponent) in blocks.zip(exponents) {
        let scale = power(i32::from(*exponent) - 127);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = E4M3[usize::from(*code)] * scale;
        }
    }
    for (value, pair) in out[body..].iter_mut().zip(rotary.chunks_exact(2)) {
        *value = f16::from_le_bytes([pair[0], pair[1]]).to_f32();
    }
}

/// Hadamard-transforms one indexer row in place and appends its canonical bytes to `out`.
pub fn encode_indexer(row: &mut [f32], out: &mut Vec<u8>) {
    hadamard(row);
    let exponents: Vec<i32> = row
        .chunks(INDEXER_BLOCK)
        .map(|block| exponent(block, E2M1_MAX, INDEXER_FLOOR))
        .collect();
    for (pair, i) in row.chunks_exact(2).zip((0..).step_by(2)) {
        let scale = power(-exponents[i / INDEXER_BLOCK]);
        out.push(e2m1_code(pair[0] * scale) | e2m1_code(pair[1] * scale) << 4);
    }
    out.extend(exponents.iter().map(|e| biased(*e)));
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
    let blocks = out.chunks_mut(INDEXER_BLOCK).zip(codes.chunks(INDEXER_BLOCK / 2));
    for ((values, codes), exponent) in blocks.zip(exponents) {
        let scale = power(i32::from(*exponent) - 127);
        for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
            pair[0] = e2m1_value(code & 15) * scale;
            pair[1] = e2m1_value(code >> 4) * scale;
        }
    }
}

/// Why bytes are not a row that [`encode_kv`] or [`encode_indexer`] can write.
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
    if let Some(at) = codes.iter().position(|code| code & 0x7f == 0x7f) {
        return Err(RowError::Code { at, found: codes[at] });
    }
    scales(exponents, KV_LEAST)?;
    for (at, pair) in rotary.chunks_exact(2).enumerate() {
        let found = u16::from_le_bytes([pair[0], pair[1]]);
        if found & 0x7c00 == 0x7c00 {
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

/// Walsh-Hadamard transform with factor `n^-1/2`; `row.len()` is a power of two.
pub fn hadamard(row: &mut [f32]) {
    let mut step = 1;
    while step < row.len() {
        for pair in row.chunks_mut(2 * step) {
            let (low, high) = pair.split_at_mut(step);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        step *= 2;
    }
    #[allow(clippy::cast_precision_loss)] // a row has a few hundred values
    let scale = 1.0 / libm::sqrtf(row.len() as f32);
    row.iter_mut().for_each(|x| *x *= scale);
}

/// `ceil(log2(max(amax, floor) / most))`, exactly: the smallest power of two that keeps the block within `most`.
fn exponent(block: &[f32], most: f32, floor: f32) -> i32 {
    let amax = block.iter().fold(floor, |most, x| most.max(x.abs()));
    let ratio = amax / most;
    let bits = ratio.to_bits();
    let e = (bits >> 23).cast_signed() - 127;
    (e + i32::from(bits & 0x7f_ffff != 0)).clamp(-126, 127)
}

fn biased(e: i32) -> u8 {
    u8::try_from(e + 127).unwrap_or(u8::MAX)
}

/// 2^e, also where the result is subnormal.
fn power(e: i32) -> f32 {
    match u32::try_from(e + 127) {
        Ok(biased @ 1..=254) => f32::from_bits(biased << 23),
        _ => libm::ldexpf(1.0, e),
    }
}

/// Nearest E4M3 code, ties to even; magnitudes above 448 become 448.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // both results are below 2^7
fn e4m3_code(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(E4M3_MAX);
    // Below 2^-6 the spacing is 2^-9; above, three bits of mantissa.
    let e = ((magnitude.to_bits() >> 23).cast_signed() - 127).max(-6);
    let steps = (magnitude * power(3 - e)).round_ties_even() as u8;
    // `steps` is 8..=16 for a normal number and 0..=8 for a subnormal one: adding lets a carry move into the exponent.
    sign | ((((e + 6) as u8) << 3) + steps)
}

/// The values of all codes; 0x7f and 0xff, which stand for no number, are never written.
static E4M3: [f32; 256] = e4m3_values();

const fn e4m3_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (e, m) = ((code >> 3 & 15) as u32, (code & 7) as f32);
        // 2^(e - 10) by its bits: e is at most 15. Subnormal codes count in steps of 2^-9.
        let magnitude = if e == 0 {
            m * 0.001_953_125
        } else {
            (8.0 + m) * f32::from_bits((e + 117) << 23)
        };
        values[code] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    values
}

fn e2m1_value(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Nearest E2M1 code, ties to the even code; magnitudes above 6 become 6.
fn e2m1_code(x: f32) -> u8 {
    let magnitude = x.abs().min(E2M1_MAX);
    let mut code = 0u8;
    for next in 1..8u8 {
        let middle = (E2M1[usize::from(next - 1)] + E2M1[usize::from(next)]) * 0.5;
        if magnitude > middle || (magnitude == middle && next % 2 == 0) {
            code = next;
        }
    }
    code | u8::from(x.is_sign_negative()) << 3
}
