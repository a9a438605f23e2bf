//! What a matrix is multiplied with: one row of activations per token, as `f32` or as 8-bit blocks.

use std::borrow::Cow;

use crate::Format;
use crate::block::GROUP;

/// Values per activation block against `Q8_0` weights.
pub const Q8_BLOCK: usize = 32;
/// Values per activation block against the 256-value formats.
pub const Q8K_BLOCK: usize = 256;

/// What makes any signed byte unsigned: for processors that multiply unsigned bytes by signed ones.
pub const OFFSET: i32 = 128;

/// The form in which activations enter a product.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// As they are.
    F32,
    /// Signed bytes, one scale per [`Q8_BLOCK`] values.
    Q8,
    /// Signed bytes, one scale per [`Q8K_BLOCK`] values.
    Q8K,
}

impl Form {
    /// What is served with weights of `format`: bytes for quantised weights, in blocks of the weights' own length.
    #[must_use]
    pub const fn of(format: Format) -> Self {
        match format.block_len() {
            1 => Self::F32,
            Q8_BLOCK => Self::Q8,
            _ => Self::Q8K,
        }
    }
}

/// Activations of some tokens, `[tokens][cols]`, in the form that a weight format takes.
#[derive(Clone, Debug)]
pub enum Activations<'a> {
    /// As they are: for `F32` and `F16` weights, and for every weight in reference numerics.
    F32 {
        /// Values per token.
        cols: usize,
        /// `[tokens][cols]`.
        values: Cow<'a, [f32]>,
    },
    /// Signed bytes with one scale per block of [`Q8_BLOCK`] or [`Q8K_BLOCK`].
    Q8 {
        /// Values per token.
        cols: usize,
        /// Values per scale.
        block: usize,
        /// `[tokens][cols]`, none below -127.
        codes: Vec<i8>,
        /// `[tokens][cols / block]`.
        scales: Vec<f32>,
        /// Sums of [`GROUP`] codes, `[tokens][cols / GROUP]`: what minimums are multiplied with.
        sums: Vec<i16>,
        /// -[`OFFSET`] times the sum of each 32 codes, `[tokens][cols / 32]`: what a product with weights offset to unsigned has too much.
        offsets: Vec<i32>,
    },
}

impl<'a> Activations<'a> {
    /// `values`, `[tokens][cols]`, in `form`.
    ///
    /// # Panics
    /// When `cols` is no whole number of the form's blocks.
    #[must_use]
    pub fn new(values: &'a [f32], cols: usize, form: Form) -> Self {
        match form {
            Form::F32 => Self::f32(values, cols),
            Form::Q8 => Self::q8(values, cols),
            Form::Q8K => Self::q8_k(values, cols),
        }
    }

    /// Keeps `values` as they are.
    #[must_use]
    pub fn f32(values: &'a [f32], cols: usize) -> Self {
        Self::F32 {
            cols,
            values: Cow::Borrowed(values),
        }
    }

    /// Codes made elsewhere, `[tokens][cols]`, with their scales, `[tokens][cols / block]`.
    ///
    /// # Panics
    /// When the counts do not fit each other or a code is below -127.
    #[must_use]
    pub fn from_codes(cols: usize, block: usize, codes: Vec<i8>, scales: Vec<f32>) -> Self {
        assert!(cols.is_multiple_of(block), "{cols} values in blocks of {block}");
        assert_eq!(
            codes.len(),
            scales.len() * block,
            "codes and scales in blocks of {block}"
        );
        assert!(!codes.contains(&i8::MIN), "codes are symmetric: -127 to 127");
        let (mut sums, mut offsets) = (vec![0; codes.len() / GROUP], vec![0; codes.len() / Q8_BLOCK]);
        sum_up(&codes, &mut sums, &mut offsets);
        Self::Q8 {
            cols,
            block,
            codes,
            scales,
            sums,
            offsets,
        }
    }

    /// Blocks of 32: scale `amax / 127`, code `round(x * (1 / scale))`, ties to even.
    #[must_use]
    pub fn q8(values: &[f32], cols: usize) -> Self {
        Self::quantized(values, cols, Q8_BLOCK)
    }

    /// Blocks of 256: the value of largest magnitude becomes -127, its sign kept in the scale.
    #[must_use]
    pub fn q8_k(values: &[f32], cols: usize) -> Self {
        Self::quantized(values, cols, Q8K_BLOCK)
    }

    fn quantized(values: &[f32], cols: usize, block: usize) -> Self {
        Self::from_rows(values, cols, block, |_, out| quantize(values, block, out))
    }

    /// Quantised activations of the size of `values`, which `fill(values, all of the output)` computes.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks, or `values` of rows.
    pub fn from_rows(
        values: &[f32],
        cols: usize,
        block: usize,
        fill: impl FnOnce(&[f32], CodesMut<'_>),
    ) -> Self {
        assert!(cols.is_multiple_of(block), "{cols} values in blocks of {block}");
        assert!(
            values.len().is_multiple_of(cols),
            "{} values in rows of {cols}",
            values.len()
        );
        let mut codes = vec![0; values.len()];
        let mut scales = vec![0.0; values.len() / block];
        let mut sums = vec![0; values.len() / GROUP];
        let mut offsets = vec![0; values.len() / Q8_BLOCK];
        let out = CodesMut {
            codes: &mut codes,
            scales: &mut scales,
            sums: &mut sums,
            offsets: &mut offsets,
        };
        fill(values, out);
        Self::Q8 {
            cols,
            block,
            codes,
            scales,
            sums,
            offsets,
        }
    }

    /// Values per token.
    #[must_use]
    pub const fn cols(&self) -> usize {
        match self {
            Self::F32 { cols, .. } | Self::Q8 { cols, .. } => *cols,
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let values = match self {
            Self::F32 { values, .. } => values.len(),
            Self::Q8 { codes, .. } => codes.len(),
        };
        values.checked_div(self.cols()).unwrap_or(0)
    }

    /// The rows of `tokens`, in that order.
    #[must_use]
    pub fn gather(&self, tokens: &[usize]) -> Activations<'static> {
        match self {
            Self::F32 { cols, values } => Activations::F32 {
                cols: *cols,
                values: Cow::Owned(rows_of(values, *cols, tokens)),
            },
            Self::Q8 {
                cols,
                block,
                codes,
                scales,
                sums,
                offsets,
            } => Activations::Q8 {
                cols: *cols,
                block: *block,
                codes: rows_of(codes, *cols, tokens),
                scales: rows_of(scales, cols / block, tokens),
                sums: rows_of(sums, cols / GROUP, tokens),
                offsets: rows_of(offsets, cols / Q8_BLOCK, tokens),
            },
        }
    }
}

fn rows_of<T: Copy>(values: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    let row = |row: &usize| &values[row * width..(row + 1) * width];
    rows.iter().flat_map(row).copied().collect()
}

/// Where quantised values go; the fields are those of [`Activations::Q8`].
#[derive(Debug)]
#[allow(missing_docs)] // see there
pub struct CodesMut<'a> {
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i16],
    pub offsets: &'a mut [i32],
}

/// Quantises whole blocks of `block` values.
///
/// # Panics
/// When the outputs do not fit the values.
pub fn quantize(values: &[f32], block: usize, out: CodesMut<'_>) {
    let CodesMut {
        codes,
        scales,
        sums,
        offsets,
    } = out;
    assert_eq!(
        (values.len(), values.len() / block),
        (codes.len(), scales.len()),
        "codes and scales"
    );
    let parts = values.chunks_exact(block).zip(codes.chunks_exact_mut(block));
    for ((values, codes), scale) in parts.zip(scales) {
        let (step, inverse) = if block == Q8_BLOCK {
            q8_scale(values)
        } else {
            q8_k_scale(values)
        };
        *scale = step;
        codes
            .iter_mut()
            .zip(values)
            .for_each(|(out, x)| *out = code(x * inverse));
    }
    sum_up(codes, sums, offsets);
}

/// The step of a block of 32, and its inverse.
fn q8_scale(block: &[f32]) -> (f32, f32) {
    let scale = block.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// The step of a block of 256, and its inverse.
fn q8_k_scale(block: &[f32]) -> (f32, f32) {
    let larger = |most: f32, &x: &f32| if x.abs() > most.abs() { x } else { most };
    let most = block.iter().fold(0.0f32, larger);
    if most == 0.0 {
        return (0.0, 0.0);
    }
    let inverse = -127.0 / most;
    (1.0 / inverse, inverse)
}

fn sum_up(codes: &[i8], sums: &mut [i16], offsets: &mut [i32]) {
    let sum = |group: &[i8]| group.iter().map(|code| i16::from(*code)).sum();
    let groups = sums.iter_mut().zip(codes.chunks_exact(GROUP));
    groups.for_each(|(out, group)| *out = sum(group));
    for (out, pair) in offsets.iter_mut().zip(sums.chunks_exact(2)) {
        *out = -OFFSET * (i32::from(pair[0]) + i32::from(pair[1]));
    }
}

/// Nearest code, ties to even, -127 to 127: symmetric, so that a sign can be moved from the weight to the code.
#[allow(clippy::cast_possible_truncation)] // clamped first
fn code(x: f32) -> i8 {
    /// 1.5 * 2^23: a sum with it has no bits below one, so the addition itself rounds, ties to even. No call, so loops vectorise.
    const ROUND: f32 = 12_582_912.0;
    (x.clamp(-127.0, 127.0) + ROUND - ROUND) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_has_scale_zero_and_codes_zero() {
        for quantized in [
            Activations::q8(&[0.0; 256], 256),
            Activations::q8_k(&[0.0; 256], 256),
        ] {
            let Activations::Q8 { codes, scales, .. } = quantized else {
                panic!("quantised")
            };
            assert!(codes.iter().all(|code| *code == 0) && scales.iter().all(|scale| *scale == 0.0));
        }
    }

    #[test]
    fn codes_are_rounded_to_the_nearest_ties_to_even() {
        for i in -140_000..140_000_i32 {
            let x = i as f32 / 1000.0;
            assert_eq!(
                f32::from(code(x)),
                x.round_ties_even().clamp(-127.0, 127.0),
                "{x}"
            );
        }
        assert_eq!(
            (code(63.5), code(62.5), code(-0.5), code(f32::NAN)),
            (64, 62, 0, 0)
        );
    }

    #[test]
    fn the_largest_magnitude_takes_the_outermost_code() {
        let mut values = [0.25f32; 256];
        values[17] = 3.0;
        let Activations::Q8 { codes, scales, .. } = Activations::q8_k(&values, 256) else {
            panic!("quantised")
        };
        assert_eq!(codes[17], -127);
        assert!(
            (scales[0] * -127.0 - 3.0).abs() < 1e-6,
            "the scale carries the sign"
        );
        let Activations::Q8 { codes, .. } = Activations::q8(&values, 256) else {
            panic!("quantised")
        };
        assert_eq!(codes[17], 127);
    }
}
