//! Hyper-connections: several residual streams, mixed before and after every block.
//!
//! The mix of one token is a row of `(2 + streams) * streams` numbers: the weight of each stream in the block's input, the weight of the block's
//! output in each stream, and `[source][destination]`, near doubly stochastic.

use crate::math::{exp, sigmoid};
use crate::ops::norm::rms_scale;

/// Streams at most: four in every published model.
pub const MOST_STREAMS: usize = 8;
/// Values of each stream that are written back at a time.
const STEP: usize = 16;

/// What turns the numbers of a connection's matrix into a mix.
#[derive(Clone, Copy, Debug)]
pub struct Mixing<'a> {
    /// Factors of the three parts.
    pub scale: &'a [f32],
    /// Added to each number.
    pub base: &'a [f32],
    /// Number of streams, at most [`MOST_STREAMS`].
    pub streams: usize,
    /// Rounds of rows and columns.
    pub iterations: usize,
    /// Added to every weight and sum.
    pub eps: f32,
    /// For the root mean square of the streams.
    pub rms_eps: f32,
}

/// Turns the row that the connection's matrix gives for a token's `streams` into its mix. The matrix is meant for normalised streams:
/// being linear, it takes them as they are and its results are scaled here.
#[inline(always)]
pub fn mix(row: &mut [f32], streams: &[f32], mixing: &Mixing<'_>) {
    let Mixing {
        scale,
        base,
        streams: n,
        iterations,
        eps,
        rms_eps,
    } = *mixing;
    let norm = rms_scale(streams, rms_eps);
    let (pre, rest) = row.split_at_mut(n);
    let (post, combine) = rest.split_at_mut(n);
    let value = |x: f32, part: usize, i: usize| (x * norm).mul_add(scale[part], base[i]);
    for i in 0..n {
        pre[i] = sigmoid(value(pre[i], 0, i)) + eps;
        post[i] = 2.0 * sigmoid(value(post[i], 1, n + i));
    }
    for (i, x) in combine.iter_mut().enumerate() {
        *x = value(*x, 2, 2 * n + i);
    }
    combine.chunks_exact_mut(n).for_each(|row| softmax(row, eps));
    columns(combine, n, eps);
    for _ in 1..iterations {
        rows(combine, n, eps);
        columns(combine, n, eps);
    }
}

/// The weighted sum of the streams, ascending; `weights` has one entry per stream.
#[inline(always)]
pub fn gather(weights: &[f32], streams: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (weight, stream) in weights.iter().zip(streams.chunks_exact(out.len())) {
        out.iter_mut()
            .zip(stream)
            .for_each(|(sum, x)| *sum = weight.mul_add(*x, *sum));
    }
}

/// The streams after the block: its output by the mix's second part, the old streams by its third, sources ascending.
#[inline(always)]
pub fn scatter(mix: &[f32], block: &[f32], streams: &mut [f32]) {
    let width = block.len();
    let n = streams.len() / width;
    let (post, combine) = mix[n..].split_at(n);
    let mut from = 0;
    while from + STEP <= width {
        let mut old = [[0.0f32; STEP]; MOST_STREAMS];
        for i in 0..n {
            old[i].copy_from_slice(&streams[i * width + from..][..STEP]);
        }
        let block: &[f32; STEP] = block[from..].first_chunk().expect("a whole step is left");
        for j in 0..n {
            let mut sum = [0.0f32; STEP];
            for d in 0..STEP {
                sum[d] = post[j] * block[d];
            }
            for i in 0..n {
                let weight = combine[i * n + j];
                for d in 0..STEP {
                    sum[d] = weight.mul_add(old[i][d], sum[d]);
                }
            }
            streams[j * width + from..][..STEP].copy_from_slice(&sum);
        }
        from += STEP;
    }
    for d in from..width {
        let mut old = [0.0f32; MOST_STREAMS];
        (0..n).for_each(|i| old[i] = streams[i * width + d]);
        for j in 0..n {
            let of_block = post[j] * block[d];
            streams[j * width + d] = (0..n).fold(of_block, |sum, i| combine[i * n + j].mul_add(old[i], sum));
        }
    }
}

/// The head's weights of the streams, from the numbers that its matrix gives for them: one number each, in place.
pub fn head_weights(row: &mut [f32], streams: &[f32], mixing: &Mixing<'_>) {
    let norm = rms_scale(streams, mixing.rms_eps);
    for (x, base) in row.iter_mut().zip(mixing.base) {
        *x = sigmoid((*x * norm).mul_add(mixing.scale[0], *base)) + mixing.eps;
    }
}

#[inline(always)]
fn softmax(row: &mut [f32], eps: f32) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = exp(*x - most));
    let share = 1.0 / row.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x = x.mul_add(share, eps));
}

#[inline(always)]
fn rows(matrix: &mut [f32], n: usize, eps: f32) {
    for row in matrix.chunks_exact_mut(n) {
        let share = 1.0 / (row.iter().sum::<f32>() + eps);
        row.iter_mut().for_each(|x| *x *= share);
    }
}

#[inline(always)]
fn columns(matrix: &mut [f32], n: usize, eps: f32) {
    let mut shares = [eps; MOST_STREAMS];
    for row in matrix.chunks_exact(n) {
        shares.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    shares.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
    for row in matrix.chunks_exact_mut(n) {
        row.iter_mut().zip(&shares).for_each(|(x, share)| *x *= share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed(base: &[f32]) -> Vec<f32> {
        let mut row: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
        let mixing = Mixing {
            scale: &[1.0; 3],
            base,
            streams: 4,
            iterations: 20,
            eps: 1e-6,
            rms_eps: 0.0,
        };
        mix(&mut row, &[1.0; 8], &mixing);
        row
    }

    #[test]
    fn combine_is_doubly_stochastic_and_indexed_source_first() {
        let mix = mixed(&[0.0; 24]);
        let combine = &mix[8..];
        for i in 0..4 {
            let row: f32 = combine[4 * i..4 * i + 4].iter().sum();
            let column: f32 = (0..4).map(|j| combine[4 * j + i]).sum();
            assert!(
                (row - 1.0).abs() < 1e-3 && (column - 1.0).abs() < 1e-5,
                "{row} {column}"
            );
        }
        let mut streams = [0.0; 4];
        streams[2] = 1.0;
        scatter(&mix, &[0.0], &mut streams);
        assert_eq!(streams[..], combine[8..12], "stream 2 is the source");
    }

    #[test]
    fn whole_steps_and_the_rest_are_written_alike() {
        let mix = mixed(&[0.1; 24]);
        let streams: Vec<f32> = (0..4 * 37).map(|i| (i as f32 * 0.3).cos()).collect();
        let block: Vec<f32> = (0..37).map(|i| (i as f32 * 0.9).sin()).collect();
        let mut whole = streams.clone();
        scatter(&mix, &block, &mut whole);
        for d in 0..37 {
            let mut one: Vec<f32> = (0..4).map(|i| streams[i * 37 + d]).collect();
            scatter(&mix, &block[d..=d], &mut one);
            assert!(
                (0..4).all(|i| one[i].to_bits() == whole[i * 37 + d].to_bits()),
                "value {d}"
            );
        }
    }
}
