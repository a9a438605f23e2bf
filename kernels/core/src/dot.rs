//! The one order in which `f32` products and sums are added.

/// Element `i` is added to lane `i % LANES`; wide enough for four chains of eight.
pub const LANES: usize = 32;

/// Dot product in the fixed order: fused into 32 lanes, then a binary tree over the lanes.
///
/// Any vector width that divides 32 gives the same bits.
#[must_use]
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (left, right) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(left.iter().zip(right)) {
            *lane = x.mul_add(*y, *lane);
        }
    }
    fold(lanes)
}

/// Sum in the same order.
#[inline(always)]
#[must_use]
pub fn sum_f32(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (full, rest) = values.as_chunks::<LANES>();
    for values in full {
        for i in 0..LANES {
            lanes[i] += values[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    fold(lanes)
}

/// Halves the lanes until one is left: lane `i` takes lane `i + half`.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_of_small_integers_is_exact_at_any_length() {
        for length in [0usize, 1, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..length).map(|i| (i % 5) as f32 - 2.0).collect();
            let expected: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot_f32(&a, &b), expected);
            assert_eq!(sum_f32(&a), a.iter().sum::<f32>());
        }
    }
}
