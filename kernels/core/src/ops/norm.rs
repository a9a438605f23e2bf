//! Root-mean-square normalisation.

/// Element `i` of a sum of squares is added to lane `i % SQUARES`; the lanes are folded in a binary tree.
const SQUARES: usize = 16;

/// `x / sqrt(mean(x^2) + eps) * weight` in place.
#[inline(always)]
pub fn rms(x: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let scale = rms_scale(x, eps);
    match weight {
        Some(weight) => x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w),
        None => x.iter_mut().for_each(|x| *x *= scale),
    }
}

/// `1 / sqrt(mean(x^2) + eps)`. Squares are exact in `f64` and added there.
#[inline(always)]
#[must_use]
pub fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0f64; SQUARES];
    let (full, rest) = x.as_chunks::<SQUARES>();
    for x in full {
        for i in 0..SQUARES {
            lanes[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*x) * f64::from(*x);
    }
    let mut half = SQUARES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // rounded to f32 once, here
    let scale = (1.0 / (lanes[0] / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalised_row_has_mean_square_one() {
        let mut x = [3.0, -4.0, 0.0, 5.0];
        rms(&mut x, None, 0.0);
        let mean: f32 = x.iter().map(|x| x * x).sum::<f32>() / 4.0;
        assert!((mean - 1.0).abs() < 1e-6);
        let mut y = [3.0, -4.0, 0.0, 5.0];
        rms(&mut y, Some(&[2.0; 4]), 0.0);
        assert!(x.iter().zip(y).all(|(x, y)| (2.0 * x - y).abs() < 1e-6));
    }
}
