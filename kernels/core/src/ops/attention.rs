//! Attention of one token's query heads over its visible rows, with a sink.
//!
//! All heads share the rows, which serve as keys and values alike. A token's rows come in runs that lie together in memory (compressed rows
//! ascending, then window rows ascending): an order that depends on absolute positions alone, so the bits do too.

use crate::math::exp;
use crate::ops::Ops;
use crate::{LANES, dot_f32, sum_f32};

/// The query heads of one token.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `[heads][dim]`.
    pub queries: &'a [f32],
    /// Values per head.
    pub dim: usize,
    /// Factor of every score.
    pub scale: f32,
    /// Scores from one head's to the next head's.
    pub stride: usize,
}

/// `out[head * stride + row] = query . row * scale`, in the order of [`dot_f32`], for rows `[rows][dim]`.
pub fn scores(heads: &Heads<'_>, rows: &[f32], out: &mut [f32]) {
    for (query, out) in heads
        .queries
        .chunks_exact(heads.dim)
        .zip(out.chunks_mut(heads.stride))
    {
        for (row, out) in rows.chunks_exact(heads.dim).zip(out) {
            *out = dot_f32(query, row) * heads.scale;
        }
    }
}

/// Turns one head's scores into weights. `sink` is a logit without a value: it takes part in the maximum and the denominator only.
#[inline(always)]
pub fn softmax(scores: &mut [f32], sink: f32) {
    let most = largest(scores, sink);
    scores.iter_mut().for_each(|score| *score = exp(*score - most));
    let share = 1.0 / (exp(sink - most) + sum_f32(scores));
    scores.iter_mut().for_each(|weight| *weight *= share);
}

#[inline(always)]
fn largest(values: &[f32], floor: f32) -> f32 {
    let mut lanes = [floor; LANES];
    let (full, rest) = values.as_chunks::<LANES>();
    for values in full {
        for i in 0..LANES {
            lanes[i] = if values[i] > lanes[i] { values[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).copied().fold(floor, f32::max)
}

/// `out[head] += weights[head * stride + row] * rows[row]`, fused, rows ascending; `out` is `[heads][dim]`.
#[inline(always)]
pub fn blend(weights: &[f32], stride: usize, rows: &[f32], dim: usize, out: &mut [f32]) {
    for (out, weights) in out.chunks_exact_mut(dim).zip(weights.chunks(stride)) {
        for (row, weight) in rows.chunks_exact(dim).zip(weights) {
            out.iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum = weight.mul_add(*x, *sum));
        }
    }
}

/// Replaces the query heads of one token, `[heads][dim]`, by their attention over the rows of `runs`. `weights` is scratch.
pub fn attend(
    ops: &Ops,
    heads: &mut [f32],
    dim: usize,
    scale: f32,
    sinks: &[f32],
    runs: &[&[f32]],
    weights: &mut Vec<f32>,
) {
    let stride = runs.iter().map(|rows| rows.len() / dim).sum::<usize>().max(1);
    weights.clear();
    weights.resize(sinks.len() * stride, 0.0);
    let mut at = 0;
    for rows in runs {
        (ops.scores)(
            &Heads {
                queries: heads,
                dim,
                scale,
                stride,
            },
            rows,
            &mut weights[at..],
        );
        at += rows.len() / dim;
    }
    for (weights, sink) in weights.chunks_exact_mut(stride).zip(sinks) {
        (ops.softmax)(&mut weights[..at], *sink);
    }
    heads.fill(0.0);
    at = 0;
    for rows in runs {
        (ops.blend)(&weights[at..], stride, rows, dim, heads);
        at += rows.len() / dim;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_takes_weight_and_gives_no_value() {
        let row = [1.0, 2.0];
        let attend = |sink, runs: &[&[f32]]| {
            let mut head = [0.0; 2];
            attend(&Ops::SCALAR, &mut head, 2, 1.0, &[sink], runs, &mut Vec::new());
            head
        };
        assert_eq!(attend(0.0, &[&row]), [0.5, 1.0]);
        assert_eq!(attend(-1e9, &[&row]), row);
        assert_eq!(attend(0.0, &[]), [0.0; 2], "no rows, no value");
    }

    #[test]
    fn runs_are_one_sequence_of_rows() {
        let rows: Vec<f32> = (0..5 * 3).map(|i| (i as f32 * 0.7).sin()).collect();
        let queries: Vec<f32> = (0..2 * 3).map(|i| (i as f32 * 0.3).cos()).collect();
        let attend = |runs: &[&[f32]]| {
            let mut heads = queries.clone();
            attend(
                &Ops::SCALAR,
                &mut heads,
                3,
                0.5,
                &[0.1, -0.2],
                runs,
                &mut Vec::new(),
            );
            heads
        };
        assert_eq!(attend(&[&rows]), attend(&[&rows[..6], &[], &rows[6..]]));
    }
}
