//! Pooling the tokens of a group into one compressed row.

use crate::math::exp;

/// What one token (or one half of it) brings to a group: values and gate logits of equal width.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Values.
    pub values: &'a [f32],
    /// Gate logits, the position bias included.
    pub gates: &'a [f32],
}

/// Channels that are pooled at a time.
const STEP: usize = 16;

/// Per channel, the mean of the slots' values weighted by the softmax of their gates; slots ascending.
#[inline(always)]
pub fn pool(slots: &[Slot<'_>], out: &mut [f32]) {
    let whole = out.len() - out.len() % STEP;
    for from in (0..whole).step_by(STEP) {
        channels::<STEP>(slots, from, out);
    }
    (whole..out.len()).for_each(|from| channels::<1>(slots, from, out));
}

#[inline(always)]
fn channels<const N: usize>(slots: &[Slot<'_>], from: usize, out: &mut [f32]) {
    let part = |row: &[f32]| -> [f32; N] { std::array::from_fn(|j| row[from..from + N][j]) };
    let mut most = [f32::NEG_INFINITY; N];
    for slot in slots {
        let gates = part(slot.gates);
        (0..N).for_each(|j| most[j] = most[j].max(gates[j]));
    }
    let (mut sum, mut total) = ([0.0f32; N], [0.0f32; N]);
    for slot in slots {
        let (gates, values) = (part(slot.gates), part(slot.values));
        for j in 0..N {
            let weight = exp(gates[j] - most[j]);
            total[j] += weight;
            sum[j] = weight.mul_add(values[j], sum[j]);
        }
    }
    for (j, out) in out[from..from + N].iter_mut().enumerate() {
        *out = sum[j] / total[j];
    }
}

/// First position whose compressor row is still needed at `frontier`: the open group, and before it one whole group where groups
/// overlap (ratio 4).
#[must_use]
pub const fn live_from(ratio: u64, frontier: u64) -> u64 {
    let open = frontier - frontier % ratio;
    if ratio == 4 { open.saturating_sub(4) } else { open }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_gates_give_the_mean_and_a_large_gate_wins() {
        let slots = |gate| {
            [
                Slot {
                    values: &[1.0],
                    gates: &[0.0],
                },
                Slot {
                    values: &[3.0],
                    gates: gate,
                },
            ]
        };
        let mut out = [0.0];
        pool(&slots(&[0.0]), &mut out);
        assert_eq!(out, [2.0]);
        pool(&slots(&[100.0]), &mut out);
        assert_eq!(out, [3.0]);
    }

    #[test]
    fn live_rows_are_the_open_group_and_for_ratio_4_the_one_before() {
        assert_eq!([0, 3, 4, 5, 8].map(|t| live_from(4, t)), [0, 0, 0, 0, 4]);
        assert_eq!([0, 127, 128, 129].map(|t| live_from(128, t)), [0, 0, 128, 128]);
    }
}
