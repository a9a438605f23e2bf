//! Scalar functions with the same bits everywhere: each is a fixed sequence of `f32` operations, so that any vector width, and a device that
//! fuses the same multiply-adds, gives the same result.

/// Adding it rounds to an integer, ties to even, and leaves that integer in the low bits: 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;

/// `e^x`, within 2 units in the last place over all of `f32`; subnormal results included.
///
/// `x = n ln 2 + r`; `e^r` by the polynomial of Cephes' `expf`; `2^n` in two factors, since `n` reaches past both ends of the exponent.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    /// Beyond these the result is 0 or infinity.
    const BOUNDS: (f32, f32) = (-104.0, 89.0);
    /// ln 2 in a part of nine bits, whose multiples are exact, and the rest.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    const TERMS: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let x = x.clamp(BOUNDS.0, BOUNDS.1);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded
        .to_bits()
        .cast_signed()
        .wrapping_sub(ROUND.to_bits().cast_signed());
    let multiple = rounded - ROUND;
    let r = (-multiple).mul_add(LN_2.1, (-multiple).mul_add(LN_2.0, x));
    let mut series = TERMS[0];
    for term in &TERMS[1..] {
        series = series.mul_add(r, *term);
    }
    let fraction = series.mul_add(r * r, r) + 1.0;
    let half = n >> 1;
    fraction * two_to(half) * two_to(n.wrapping_sub(half))
}

/// 2^n for a normal result; anything for other `n`.
#[inline(always)]
fn two_to(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)`.
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `ln(1 + e^x)`; linear above 20, as the model's reference has it.
#[must_use]
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { libm::log1pf(exp(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_meet_their_definitions_at_known_points() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(silu(0.0), 0.0);
        assert!((softplus(0.0) - std::f32::consts::LN_2).abs() < 1e-7);
        assert_eq!(softplus(30.0), 30.0);
        assert!(softplus(-30.0) > 0.0);
    }

    #[test]
    fn exp_has_its_limits() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e9), f32::INFINITY);
        assert!(exp(88.72).is_finite() && exp(88.73).is_infinite());
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-103.0) > 0.0, "the smallest subnormal");
    }

    /// Every 997th of all bit patterns: both signs, all exponents, and each binade more than 8,000 times.
    #[test]
    fn exp_is_within_two_units_in_the_last_place_of_libm() {
        let mut worst = 0;
        for bits in (0..=u32::MAX).step_by(if cfg!(miri) { 99_999_989 } else { 997 }) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            // Results are not negative, so their bits count units in the last place, subnormal and infinite ones too.
            let units = exp(x).to_bits().abs_diff(libm::expf(x).to_bits());
            assert!(units <= 2, "e^{x}: {units} units");
            worst = worst.max(units);
        }
        assert!(worst <= 2);
    }
}
