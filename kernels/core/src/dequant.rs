//! Blocks back to numbers.

use crate::Format;
use crate::grid::{GRID, signs};

/// Writes the values of one row (or any whole number of blocks) to `out`.
///
/// `I32` values are converted; they are exact up to 2^24, far above any expert index.
///
/// # Panics
/// When `out` is longer than the blocks in `bytes`.
pub fn dequantize_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(format.block_bytes());
    assert!(
        out.len() <= blocks.len() * format.block_len(),
        "{} values from {} bytes of {format}",
        out.len(),
        bytes.len()
    );
    match format {
        Format::F16 => return halves(bytes, out),
        Format::F32 => return floats(bytes, out),
        _ => {}
    }
    for (block, values) in blocks.zip(out.chunks_mut(format.block_len())) {
        match format {
            #[allow(clippy::cast_precision_loss)] // see above
            Format::I32 => values[0] = i32::from_le_bytes([block[0], block[1], block[2], block[3]]) as f32,
            Format::F32 | Format::F16 => unreachable!("done above"),
            Format::Q8_0 => q8_0(block, values),
            Format::Q2K => q2_k(block, values),
            Format::Q4K => q4_k(block, values),
            Format::Iq2Xxs => iq2_xxs(block, values),
            Format::Mxfp4 => mxfp4(block, values),
        }
    }
}

/// Widens consecutive halves; a loop of its own, so that it vectorises.
fn halves(bytes: &[u8], out: &mut [f32]) {
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = widen(u16::from_le_bytes([pair[0], pair[1]]));
    }
}

fn floats(bytes: &[u8], out: &mut [f32]) {
    for (value, four) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = f32::from_le_bytes(*four);
    }
}

/// The half at byte `offset`, widened.
pub(crate) fn half_at(block: &[u8], offset: usize) -> f32 {
    widen(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// The value of a half's bits, exactly.
#[must_use]
#[inline]
pub fn widen(half: u16) -> f32 {
    /// 2^112, the difference of the two exponent biases.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(half);
    // Moving the mantissa into place scales the value, subnormal or not, by 2^-112.
    let finite = (f32::from_bits((bits & 0x7fff) << 13) * REBIAS).to_bits();
    let exponent = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite | exponent | (bits & 0x8000) << 16)
}

fn q8_0(block: &[u8], values: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, code) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(code.cast_signed());
    }
}

/// 16 scale bytes (low nibble scale, high nibble minimum), 64 code bytes, `d`, `dmin`.
fn q2_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, value) in values.iter_mut().enumerate() {
        let scale = block[i / 16];
        *value = d * f32::from(scale & 15) * f32::from(q2_code(block, i)) - dmin * f32::from(scale >> 4);
    }
}

/// Code `i` of a `Q2_K` block: 128 values share 32 bytes, two bits each.
pub(crate) fn q2_code(block: &[u8], i: usize) -> u8 {
    let (half, within) = (i / 128, i % 128);
    block[16 + half * 32 + within % 32] >> (2 * (within / 32)) & 3
}

fn q4_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (i, value) in values.iter_mut().enumerate() {
        let (scale, minimum) = q4_scale(block, i / 32);
        *value = d * f32::from(scale) * f32::from(q4_code(block, i)) - dmin * f32::from(minimum);
    }
}

/// Six-bit scale and minimum of sub-block `j` of 8, packed in 12 bytes.
pub(crate) fn q4_scale(block: &[u8], j: usize) -> (u8, u8) {
    let s = &block[4..16];
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

/// Code `i` of a `Q4_K` block: 64 values share 32 bytes, low nibbles first.
pub(crate) fn q4_code(block: &[u8], i: usize) -> u8 {
    let (part, within) = (i / 64, i % 64);
    block[16 + part * 32 + within % 32] >> (4 * (within / 32)) & 15
}

fn iq2_xxs(block: &[u8], values: &mut [f32]) {
    let d = half_at(block, 0);
    for (j, group) in values.chunks_mut(32).enumerate() {
        let (codes, step) = iq2_group(block, j);
        // Twice the step is an odd integer, an eighth of it the scale.
        let scale = d * f32::from(step) * 0.125;
        for (value, code) in group.iter_mut().zip(codes) {
            *value = scale * f32::from(code);
        }
    }
}

/// Twice the values of `E2M1`: integers.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that an `E8M0` byte stands for (`2^(e - 127)`), to go with the doubled codes; exact down to the subnormals.
#[must_use]
#[inline]
pub const fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 1 << 21,
        1 => 1 << 22,
        e => (e as u32 - 1) << 23,
    })
}

/// The scale byte, then 16 bytes: low nibbles are values 0 to 15, high nibbles 16 to 31.
fn mxfp4(block: &[u8], values: &mut [f32]) {
    let d = half_of_power(block[0]);
    for (i, value) in values.iter_mut().enumerate() {
        let code = block[1 + i % 16] >> (4 * (i / 16)) & 15;
        *value = d * f32::from(E2M1_DOUBLED[usize::from(code)]);
    }
}

/// The 32 signed magnitudes of group `j` of 8, and the odd scale step `2 * s + 1`.
pub(crate) fn iq2_group(block: &[u8], j: usize) -> ([i8; 32], u8) {
    let group = &block[2 + 8 * j..10 + 8 * j];
    let tail = u32::from_le_bytes([group[4], group[5], group[6], group[7]]);
    let mut codes = [0; 32];
    for (k, eight) in codes.chunks_mut(8).enumerate() {
        let minus = signs(tail >> (7 * k));
        for (i, code) in eight.iter_mut().enumerate() {
            let magnitude = GRID[usize::from(group[k])][i];
            *code = if minus >> i & 1 == 1 {
                -magnitude
            } else {
                magnitude
            };
        }
    }
    let step = u8::try_from(tail >> 28).unwrap_or(15) * 2 + 1;
    (codes, step)
}

#[cfg(test)]
mod tests {
    use half::f16;

    #[test]
    fn every_half_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let (expected, found) = (f16::from_bits(bits).to_f32(), super::widen(bits));
            let equal = expected.to_bits() == found.to_bits() || (expected.is_nan() && found.is_nan());
            assert!(equal, "{bits:#06x}: expected {expected}, found {found}");
        }
    }
}
