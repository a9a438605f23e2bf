//! Routing a token to experts, and their activation.

use crate::math::{silu, softplus};
use crate::ops::indexer::top_k;

/// Smallest sum of routing probabilities that is divided by (2^-14, from the model's reference).
const SUM_FLOOR: f32 = 6.103_515_6e-5;

/// Experts of one token, ascending, with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `(expert, weight)`, experts ascending: the order in which contributions are added.
    pub slots: Vec<(usize, f32)>,
}

/// Unnormalised probabilities of the router's logits.
pub fn probabilities(logits: &mut [f32]) {
    logits.iter_mut().for_each(|x| *x = libm::sqrtf(softplus(*x)));
}

impl Routing {
    /// The `used` experts with the largest biased probability, ties to the lowest index.
    #[must_use]
    pub fn scored(probabilities: &[f32], bias: Option<&[f32]>, used: usize, scale: f32) -> Self {
        let biased: Vec<f32> = match bias {
            Some(bias) => probabilities.iter().zip(bias).map(|(p, b)| p + b).collect(),
            None => probabilities.to_vec(),
        };
        let best = top_k(&biased, used).into_iter().map(|expert| expert as usize);
        Self::chosen(best.collect(), probabilities, scale)
    }

    /// Experts given by the token's id. The weight is the unbiased probability's share, times `scale`.
    #[must_use]
    pub fn chosen(mut experts: Vec<usize>, probabilities: &[f32], scale: f32) -> Self {
        experts.sort_unstable();
        let sum = experts
            .iter()
            .map(|e| probabilities[*e])
            .sum::<f32>()
            .max(SUM_FLOOR);
        Self {
            slots: experts
                .into_iter()
                .map(|e| (e, probabilities[e] / sum * scale))
                .collect(),
        }
    }
}

/// `silu(min(gate, clamp)) * clamp(up, -clamp, clamp) * weight` into `gate`.
#[inline(always)]
pub fn swiglu(gate: &mut [f32], up: &[f32], clamp: f32, weight: f32) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = silu(gate.min(clamp)) * up.clamp(-clamp, clamp) * weight;
    }
}

/// Values that are added at a time.
const STEP: usize = 16;

/// Adds the sum of a token's `parts`, `[experts][width]`, ascending, to `out`: the routed experts to the shared one.
#[inline(always)]
pub fn combine(out: &mut [f32], parts: &[f32]) {
    let width = out.len();
    let whole = width - width % STEP;
    for from in (0..whole).step_by(STEP) {
        let mut sum = [0.0f32; STEP];
        for part in parts.chunks_exact(width) {
            (0..STEP).for_each(|i| sum[i] += part[from..from + STEP][i]);
        }
        out[from..from + STEP]
            .iter_mut()
            .zip(sum)
            .for_each(|(out, sum)| *out += sum);
    }
    for i in whole..width {
        out[i] += parts.chunks_exact(width).fold(0.0, |sum, part| sum + part[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_chooses_and_the_probability_weighs() {
        let routing = Routing::scored(&[0.5, 1.0, 1.5], Some(&[9.0, 0.0, 0.0]), 2, 3.0);
        assert_eq!(routing.slots, [(0, 0.75), (2, 2.25)]);
        let none = Routing::chosen(vec![1, 0], &[0.0, 0.0], 1.5);
        assert!(
            none.slots.iter().all(|(_, weight)| *weight == 0.0),
            "the floor stands in for a sum of nothing"
        );
    }

    #[test]
    fn the_gate_is_clamped_from_above_only_and_up_on_both_sides() {
        let mut gate = [100.0, -100.0, 1.0];
        swiglu(&mut gate, &[50.0, -50.0, -50.0], 10.0, 1.0);
        assert!(
            (gate[0] - 100.0).abs() < 0.1 && gate[1].abs() < 1e-6 && gate[2] < -7.0,
            "{gate:?}"
        );
    }
}
