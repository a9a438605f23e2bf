//! A few tokens beside each other, in the order of an instruction.

use std::ops::Range;

use ds4_kernels::block::GROUP;

use super::multiply::{Multiply, STEP};
use super::part::Four;
use super::weights::Weights;
use crate::operands::Token;

/// What makes a sum of 16 codes two signed bytes: at most 16 * 127, it is `128 * high + low`.
pub(super) const HIGH_BITS: u32 = 7;

/// Some blocks of the tokens of a tile. Where one is missing, the last one stands in for it.
#[derive(Default)]
pub(super) struct Few {
    /// `[steps][2 * tokens]`, in eights.
    pub(super) codes: Vec<[i8; 8]>,
    /// `[blocks][N]`
    pub(super) scales: Vec<Four<f32>>,
    /// `[blocks][high, low][2 * tokens]`: sums of 16 codes as bytes, against minimums.
    pub(super) sums: Vec<[i8; 8]>,
}

impl Few {
    /// Takes these blocks of `tokens`, which fill `N` registers of sums.
    #[inline(always)]
    pub(super) fn pack<
        M: Multiply<H>,
        const H: usize,
        const N: usize,
        W: Weights<BYTES>,
        const BYTES: usize,
    >(
        &mut self,
        tokens: &[Token<'_>],
        blocks: &Range<usize>,
    ) {
        let (count, values) = (N * M::TOKENS, 32 * W::GROUPS);
        self.codes
            .resize(2 * count * blocks.len() * values / STEP, [0; 8]);
        self.scales.resize(N * blocks.len(), [0.0; 4]);
        if W::MINIMUMS {
            self.sums.resize(4 * count * blocks.len(), [0; 8]);
        }
        for i in 0..count {
            let token = &tokens[i.min(tokens.len() - 1)];
            let codes = &token.codes[blocks.start * values..blocks.end * values];
            place::<M, H>(i, count, codes.as_chunks().0, &mut self.codes);
            let scales = &token.scales[blocks.clone()];
            for (out, scale) in self.scales.chunks_exact_mut(N).zip(scales) {
                let lanes = out[i / M::TOKENS].iter_mut();
                lanes
                    .skip(i % M::TOKENS)
                    .step_by(M::TOKENS)
                    .for_each(|lane| *lane = *scale);
            }
            if W::MINIMUMS {
                let sums = &token.sums[blocks.start * GROUP..blocks.end * GROUP];
                for (sums, out) in sums
                    .as_chunks::<GROUP>()
                    .0
                    .iter()
                    .zip(self.sums.chunks_exact_mut(4 * count))
                {
                    place::<M, H>(i, count, &bytes(sums), out);
                }
            }
        }
    }
}

/// Puts the values of token `i` of `count`, step after step, where an instruction wants them.
#[inline(always)]
fn place<M: Multiply<H>, const H: usize>(i: usize, count: usize, values: &[[i8; 8]], out: &mut [[i8; 8]]) {
    let steps = values.as_chunks::<2>().0.iter();
    for (halves, out) in steps.zip(out.chunks_exact_mut(2 * count)) {
        for (half, eight) in halves.iter().enumerate() {
            out[M::place(i, half, count)] = *eight;
        }
    }
}

/// The high bytes of 16 sums, then the low ones.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // -16 to 15, 0 to 127
fn bytes(sums: &[i16; GROUP]) -> [[i8; 8]; 4] {
    let mut bytes = [[0; 8]; 4];
    let (high, low) = bytes.as_flattened_mut().split_at_mut(GROUP);
    for (i, sum) in sums.iter().enumerate() {
        (high[i], low[i]) = ((sum >> HIGH_BITS) as i8, (sum & 127) as i8);
    }
    bytes
}
