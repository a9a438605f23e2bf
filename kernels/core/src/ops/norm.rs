//! Root-mean-square normalisation.

/// `x / sqrt(mean(x^2) + eps) * weight` in place; the sum of squares is taken in `f64`, ascending.
pub fn rms(x: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // rounded to f32 once, here
    let scale = (1.0 / libm::sqrt(squares / x.len() as f64 + f64::from(eps))) as f32;
    match weight {
        Some(weight) => x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w),
        None => x.iter_mut().for_each(|x| *x *= scale),
    }
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
