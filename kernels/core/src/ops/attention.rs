//! Attention of one query head over visible rows, with a sink.

use crate::Backend;
use crate::math::exp;

/// Attends from `query` to `rows`, which serve as keys and values alike, in the order given; writes the weighted sum to `out`.
///
/// `sink` is a logit without a value: it takes part in the maximum and the denominator only. The caller's order (compressed rows ascending,
/// then window rows ascending) depends on absolute positions alone, so the bits do too.
pub fn attend<B: Backend + ?Sized>(
    backend: &B,
    query: &[f32],
    rows: &[&[f32]],
    sink: f32,
    scale: f32,
    out: &mut [f32],
) {
    let mut scores: Vec<f32> = rows.iter().map(|row| backend.dot(query, row) * scale).collect();
    let most = scores.iter().copied().fold(sink, f32::max);
    let mut sum = exp(sink - most);
    for score in &mut scores {
        *score = exp(*score - most);
        sum += *score;
    }
    out.fill(0.0);
    for (row, weight) in rows.iter().zip(&scores) {
        backend.axpy(*weight / sum, row, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scalar;

    #[test]
    fn the_sink_takes_weight_and_gives_no_value() {
        let row = [1.0, 2.0];
        let mut out = [0.0; 2];
        attend(&Scalar, &[0.0, 0.0], &[&row], 0.0, 1.0, &mut out);
        assert_eq!(out, [0.5, 1.0]);
        attend(&Scalar, &[0.0, 0.0], &[&row], -1e9, 1.0, &mut out);
        assert_eq!(out, row);
    }
}
