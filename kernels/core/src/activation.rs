//! What a matrix is multiplied with: one row of activations per token, as `f32` or as 8-bit blocks.

/// Values per activation block against `Q8_0` weights.
pub const Q8_BLOCK: usize = 32;
/// Values per activation block against the 256-value formats.
pub const Q8K_BLOCK: usize = 256;

/// Activations of some tokens, `[tokens][cols]`, in the form that a weight format takes.
#[derive(Clone, Debug)]
pub enum Activations {
    /// As they are: for `F32` and `F16` weights, and for every weight in reference numerics.
    F32 {
        /// Values per token.
        cols: usize,
        /// `[tokens][cols]`.
        values: Vec<f32>,
    },
    /// Signed bytes with one scale per block of [`Q8_BLOCK`] or [`Q8K_BLOCK`].
    Q8 {
        /// Values per token.
        cols: usize,
        /// Values per scale.
        block: usize,
        /// `[tokens][cols]`.
        codes: Vec<i8>,
        /// `[tokens][cols / block]`.
        scales: Vec<f32>,
    },
}

impl Activations {
    /// Keeps `values` as they are.
    #[must_use]
    pub fn f32(values: &[f32], cols: usize) -> Self {
        Self::F32 {
            cols,
            values: values.to_vec(),
        }
    }

    /// Blocks of 32: scale `amax / 127`, code `round(x * (1 / scale))`, ties to even.
    #[must_use]
    pub fn q8(values: &[f32], cols: usize) -> Self {
        Self::quantized(values, cols, Q8_BLOCK, |block| {
            let scale = block.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
        })
    }

    /// Blocks of 256: the value of largest magnitude becomes -127, its sign kept in the scale.
    #[must_use]
    pub fn q8_k(values: &[f32], cols: usize) -> Self {
        Self::quantized(values, cols, Q8K_BLOCK, |block| {
            let most = block
                .iter()
                .fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
            if most == 0.0 {
                return (0.0, 0.0);
            }
            let inverse = -127.0 / most;
            (1.0 / inverse, inverse)
        })
    }

    fn quantized(values: &[f32], cols: usize, block: usize, scale: impl Fn(&[f32]) -> (f32, f32)) -> Self {
        let mut codes = Vec::with_capacity(values.len());
        let mut scales = Vec::with_capacity(values.len() / block);
        for part in values.chunks_exact(block) {
            let (step, inverse) = scale(part);
            scales.push(step);
            codes.extend(part.iter().map(|x| code(x * inverse)));
        }
        Self::Q8 {
            cols,
            block,
            codes,
            scales,
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
}

/// Nearest code, ties to even, within the signed byte.
#[allow(clippy::cast_possible_truncation)] // clamped first
fn code(x: f32) -> i8 {
    /// 1.5 * 2^23: a sum with it has no bits below one, so the addition itself rounds, ties to even. No call, so loops vectorise.
    const ROUND: f32 = 12_582_912.0;
    (x.clamp(-128.0, 127.0) + ROUND - ROUND) as i8
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
                x.round_ties_even().clamp(-128.0, 127.0),
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
