//! Some rows unpacked once for many tokens.

use std::arch::aarch64::{float32x4_t, int8x16_t, vst1q_f32, vst1q_s8};
use std::array::from_fn;

use super::multiply::{Line, Multiply, ROWS, STEP, row};
use super::weights::{FOUR, Weights};

/// Four numbers, as a register of sums wants them.
pub(super) type Four<T> = [T; FOUR];

/// Some blocks of [`ROWS`] rows, in the order of an instruction. What a format has no use for stays as it was.
#[derive(Default)]
pub(super) struct Part {
    pub(super) blocks: usize,
    /// `[blocks * values of a block / STEP]`
    pub(super) codes: Vec<Line>,
    /// `[blocks][H]`
    pub(super) scales: Vec<Four<f32>>,
    /// `[groups][H]`
    pub(super) steps: Vec<Four<i32>>,
    /// `[blocks]`: the minimums as values of their own.
    pub(super) minimums: Vec<Line>,
    /// `[blocks][H]`
    pub(super) minimum_scales: Vec<Four<f32>>,
}

impl Part {
    /// Takes these blocks of these rows.
    #[inline(always)]
    pub(super) fn unpack<M: Multiply<H>, const H: usize, W: Weights<BYTES>, const BYTES: usize>(
        &mut self,
        rows: &[&[[u8; BYTES]]; ROWS],
    ) {
        self.blocks = rows[0].len();
        assert!(rows.iter().all(|row| row.len() == self.blocks));
        let groups = self.blocks * W::GROUPS;
        self.codes.resize(groups * (32 / STEP), Line([0; ROWS * STEP]));
        self.scales.resize(self.blocks * H, [0.0; FOUR]);
        if W::STEPS {
            self.steps.resize(groups * H, [0; FOUR]);
        }
        if W::MINIMUMS {
            self.minimums.resize(self.blocks, Line([0; ROWS * STEP]));
            self.minimum_scales.resize(self.blocks * H, [0.0; FOUR]);
        }
        for at in 0..self.blocks {
            // SAFETY: all rows have as many blocks, as asserted.
            self.block::<M, H, W, BYTES>(at, &rows.map(|row| unsafe { row.get_unchecked(at) }));
        }
    }

    #[inline(always)]
    fn block<M: Multiply<H>, const H: usize, W: Weights<BYTES>, const BYTES: usize>(
        &mut self,
        at: usize,
        blocks: &[&[u8; BYTES]; ROWS],
    ) {
        let steps = blocks.map(|block| W::steps(block));
        let lines = &mut self.codes[at * W::GROUPS * 2..][..W::GROUPS * 2];
        for (group, lines) in lines.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let rows: [_; ROWS] = from_fn(|row| W::group(blocks[row], &steps[row], group));
            for (i, line) in lines.iter_mut().enumerate() {
                store::<M, H>(line, from_fn(|row| rows[row][i]));
            }
        }
        spread::<M, H, f32>(&mut self.scales[at * H..], &eight(blocks, W::scales));
        if W::STEPS {
            for (group, out) in self.steps[at * W::GROUPS * H..]
                .chunks_exact_mut(H)
                .take(W::GROUPS)
                .enumerate()
            {
                spread::<M, H, i32>(out, &steps.each_ref().map(|steps| W::step(steps, group)));
            }
        }
        if W::MINIMUMS {
            let minimums = blocks.map(|block| W::minimums(block));
            store::<M, H>(&mut self.minimums[at], minimums);
            spread::<M, H, f32>(
                &mut self.minimum_scales[at * H..],
                &eight(blocks, W::minimum_scales),
            );
        }
    }
}

#[inline(always)]
fn store<M: Multiply<H>, const H: usize>(line: &mut Line, rows: [int8x16_t; ROWS]) {
    let registers = line.0.as_chunks_mut::<STEP>().0.iter_mut();
    for (out, register) in registers.zip(M::arrange(rows)) {
        // SAFETY: NEON is there on every target of this module; the array has 16 bytes.
        unsafe { vst1q_s8(out.as_mut_ptr(), register) };
    }
}

/// A number of every row.
#[inline(always)]
fn eight<const BYTES: usize>(
    blocks: &[&[u8; BYTES]; ROWS],
    of_four: impl Fn(&[&[u8; BYTES]; FOUR]) -> float32x4_t,
) -> [f32; ROWS] {
    let mut numbers = [0.0; ROWS];
    let fours = numbers.as_chunks_mut::<FOUR>().0.iter_mut();
    for (out, blocks) in fours.zip(blocks.as_chunks::<FOUR>().0) {
        // SAFETY: NEON is there on every target of this module; the array has four numbers.
        unsafe { vst1q_f32(out.as_mut_ptr(), of_four(blocks)) };
    }
    numbers
}

/// A number of every row, where its sums are.
#[inline(always)]
fn spread<M: Multiply<H>, const H: usize, T: Copy>(out: &mut [Four<T>], numbers: &[T; ROWS]) {
    for (h, out) in out.iter_mut().take(H).enumerate() {
        *out = from_fn(|lane| numbers[row::<M, H>(h, lane)]);
    }
}
