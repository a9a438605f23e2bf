//! Quantised blocks as integers: what every dot with 8-bit activations starts from.

use crate::Format;
use crate::dequant::{E2M1_DOUBLED, half_at, half_of_power, iq2_group, q2_code, q4_code, q4_scale};

/// Values that share one minimum.
pub const GROUP: usize = 16;

/// One block of weights: `w[i] = d * weights[i] - dmin * minimums[i / 16]`, the products with sub-block scales already taken, exactly.
#[derive(Clone, Debug)]
pub struct Block {
    /// Scale of the weights.
    pub d: f32,
    /// Scale of the minimums; 0 for formats without.
    pub dmin: f32,
    /// Code times sub-block scale: at most 43 * 31 (`IQ2_XXS`), which fits.
    pub weights: [i16; 256],
    /// One per group of 16 values.
    pub minimums: [i16; 16],
}

impl Block {
    /// Unpacks the bytes of one block; the first `format.block_len()` weights are set.
    ///
    /// # Panics
    /// When `format` has no 8-bit activations (its block length is 1).
    #[must_use]
    pub fn unpack(format: Format, bytes: &[u8]) -> Self {
        let mut block = Self {
            d: 0.0,
            dmin: 0.0,
            weights: [0; 256],
            minimums: [0; 16],
        };
        match format {
            Format::Q8_0 => block.q8_0(bytes),
            Format::Q2K => block.q2_k(bytes),
            Format::Q4K => block.q4_k(bytes),
            Format::Iq2Xxs => block.iq2_xxs(bytes),
            Format::Mxfp4 => block.mxfp4(bytes),
            Format::F32 | Format::F16 | Format::I32 => unreachable!("{format} has no 8-bit activations"),
        }
        block
    }

    fn q8_0(&mut self, bytes: &[u8]) {
        self.d = half_at(bytes, 0);
        self.weights
            .iter_mut()
            .zip(&bytes[2..34])
            .for_each(|(w, code)| *w = i16::from(code.cast_signed()));
    }

    fn mxfp4(&mut self, bytes: &[u8]) {
        self.d = half_of_power(bytes[0]);
        for (i, byte) in bytes[1..17].iter().enumerate() {
            self.weights[i] = i16::from(E2M1_DOUBLED[usize::from(byte & 15)]);
            self.weights[i + 16] = i16::from(E2M1_DOUBLED[usize::from(byte >> 4)]);
        }
    }

    fn q2_k(&mut self, bytes: &[u8]) {
        (self.d, self.dmin) = (half_at(bytes, 80), half_at(bytes, 82));
        for (j, group) in self.weights.chunks_exact_mut(GROUP).enumerate() {
            let step = i16::from(bytes[j] & 15);
            self.minimums[j] = i16::from(bytes[j] >> 4);
            group
                .iter_mut()
                .enumerate()
                .for_each(|(i, w)| *w = step * i16::from(q2_code(bytes, j * GROUP + i)));
        }
    }

    fn q4_k(&mut self, bytes: &[u8]) {
        (self.d, self.dmin) = (half_at(bytes, 0), half_at(bytes, 2));
        for (j, part) in self.weights.chunks_exact_mut(2 * GROUP).enumerate() {
            let (step, minimum) = q4_scale(bytes, j);
            self.minimums[2 * j..2 * j + 2].fill(i16::from(minimum));
            let step = i16::from(step);
            part.iter_mut()
                .enumerate()
                .for_each(|(i, w)| *w = step * i16::from(q4_code(bytes, j * 2 * GROUP + i)));
        }
    }

    fn iq2_xxs(&mut self, bytes: &[u8]) {
        // The step is an odd integer: twice the format's scale plus one half; an eighth completes it.
        self.d = half_at(bytes, 0) * 0.125;
        for (j, part) in self.weights.chunks_exact_mut(2 * GROUP).enumerate() {
            let (codes, step) = iq2_group(bytes, j);
            let step = i16::from(step);
            part.iter_mut()
                .zip(codes)
                .for_each(|(w, code)| *w = step * i16::from(code));
        }
    }

    /// Adds this block's part of a dot: exact integers, then one fused multiply-add each for weights and minimums.
    #[must_use]
    #[inline] // so that back ends get the instruction, not a call of `fmaf`
    #[allow(clippy::cast_precision_loss)] // above 2^24 (Q4_K, IQ2_XXS) one rounding is the definition
    pub fn accumulate(&self, sum: f32, scale: f32, dot: i32, minimums: i32) -> f32 {
        let sum = (self.d * scale).mul_add(dot as f32, sum);
        if self.dmin == 0.0 {
            sum
        } else {
            (-(self.dmin * scale)).mul_add(minimums as f32, sum)
        }
    }

    /// The two integers for one block of activation codes.
    #[must_use]
    pub fn dot(&self, codes: &[i8]) -> (i32, i32) {
        let product = |(w, x): (&i16, &i8)| i32::from(*w) * i32::from(*x);
        let dot = self.weights.iter().zip(codes).map(product).sum();
        let of_group = |(minimum, codes): (&i16, &[i8])| {
            i32::from(*minimum) * codes.iter().map(|x| i32::from(*x)).sum::<i32>()
        };
        (
            dot,
            self.minimums.iter().zip(codes.chunks(GROUP)).map(of_group).sum(),
        )
    }
}
