//! Hyper-connections: several residual streams, mixed before and after every block.

use crate::math::{exp, sigmoid};

/// How one block reads the streams of one token and writes them back.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Weight of each stream in the block's input.
    pub pre: Vec<f32>,
    /// Weight of the block's output in each stream.
    pub post: Vec<f32>,
    /// `[source][destination]`: near doubly stochastic.
    pub combine: Vec<f32>,
}

impl Mix {
    /// From the `(2 + streams) * streams` numbers that the connection's matrix gives for a token.
    #[must_use]
    pub fn new(
        raw: &[f32],
        scale: &[f32],
        base: &[f32],
        streams: usize,
        iterations: usize,
        eps: f32,
    ) -> Self {
        let value = |i: usize, part: usize| raw[i] * scale[part] + base[i];
        let pre = (0..streams).map(|i| sigmoid(value(i, 0)) + eps).collect();
        let post = (streams..2 * streams)
            .map(|i| 2.0 * sigmoid(value(i, 1)))
            .collect();
        let mut combine: Vec<f32> = (2 * streams..(2 + streams) * streams)
            .map(|i| value(i, 2))
            .collect();
        combine
            .chunks_exact_mut(streams)
            .for_each(|row| softmax(row, eps));
        columns(&mut combine, streams, eps);
        for _ in 1..iterations {
            rows(&mut combine, streams, eps);
            columns(&mut combine, streams, eps);
        }
        Self { pre, post, combine }
    }

    /// The block's input: the weighted sum of the streams, ascending.
    pub fn gather(&self, streams: &[f32], out: &mut [f32]) {
        gather(&self.pre, streams, out);
    }

    /// The streams after the block: its output by `post`, the old streams by `combine`.
    pub fn scatter(&self, block: &[f32], streams: &mut [f32]) {
        let width = block.len();
        let count = self.post.len();
        let old = streams.to_vec();
        for (j, stream) in streams.chunks_exact_mut(width).enumerate() {
            for (d, value) in stream.iter_mut().enumerate() {
                let kept = (0..count).fold(0.0, |sum, i| {
                    sum + self.combine[i * count + j] * old[i * width + d]
                });
                *value = self.post[j] * block[d] + kept;
            }
        }
    }
}

/// The weighted sum of the streams, ascending; `weights` has one entry per stream.
pub fn gather(weights: &[f32], streams: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (weight, stream) in weights.iter().zip(streams.chunks_exact(out.len())) {
        out.iter_mut().zip(stream).for_each(|(sum, x)| *sum += weight * x);
    }
}

/// The head's weights of the streams: one number each.
#[must_use]
pub fn head_weights(raw: &[f32], scale: f32, base: &[f32], eps: f32) -> Vec<f32> {
    raw.iter()
        .zip(base)
        .map(|(raw, base)| sigmoid(raw * scale + base) + eps)
        .collect()
}

fn softmax(row: &mut [f32], eps: f32) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = exp(*x - most));
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x = *x / sum + eps);
}

fn rows(matrix: &mut [f32], n: usize, eps: f32) {
    for row in matrix.chunks_exact_mut(n) {
        let sum = row.iter().sum::<f32>() + eps;
        row.iter_mut().for_each(|x| *x /= sum);
    }
}

fn columns(matrix: &mut [f32], n: usize, eps: f32) {
    for j in 0..n {
        let sum = (0..n).map(|i| matrix[i * n + j]).sum::<f32>() + eps;
        (0..n).for_each(|i| matrix[i * n + j] /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combine_is_doubly_stochastic_and_indexed_source_first() {
        let raw: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
        let mix = Mix::new(&raw, &[1.0; 3], &[0.0; 24], 4, 20, 1e-6);
        for i in 0..4 {
            let row: f32 = mix.combine[4 * i..4 * i + 4].iter().sum();
            let column: f32 = (0..4).map(|j| mix.combine[4 * j + i]).sum();
            assert!(
                (row - 1.0).abs() < 1e-3 && (column - 1.0).abs() < 1e-5,
                "{row} {column}"
            );
        }
        let mut streams = [0.0; 4];
        streams[2] = 1.0;
        mix.scatter(&[0.0], &mut streams);
        assert_eq!(streams[..], mix.combine[8..12], "stream 2 is the source");
    }
}
