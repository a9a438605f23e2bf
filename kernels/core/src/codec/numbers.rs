//! The small number formats of a row, without tables or branches, so that loops over them vectorise.

/// The largest E4M3 value.
pub(super) const E4M3_MAX: f32 = 448.0;
/// The largest E2M1 value.
pub(super) const E2M1_MAX: f32 = 6.0;
/// 1.5 * 2^23: a sum with it is rounded to an integer, ties to even, which its low bits then hold.
const ROUND: f32 = 12_582_912.0;

/// 2^e for a normal result.
#[inline(always)]
const fn two_to(e: i32) -> f32 {
    f32::from_bits(((e + 127) << 23).cast_unsigned())
}

/// 2^e, also where the result is subnormal.
pub(super) fn power(e: i32) -> f32 {
    if e >= -126 {
        two_to(e)
    } else {
        libm::ldexpf(1.0, e)
    }
}

/// `ceil(log2(max(amax, floor) / most))`, exactly: the smallest power of two that keeps the block within `most`.
#[inline(always)]
pub(super) fn exponent(block: &[f32], most: f32, floor: f32) -> i32 {
    // Bits of magnitudes are ordered as the magnitudes are.
    let amax = block
        .iter()
        .fold(floor.to_bits(), |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let bits = (f32::from_bits(amax) / most).to_bits();
    let e = (bits >> 23).cast_signed() - 127;
    (e + i32::from(bits & 0x7f_ffff != 0)).clamp(-126, 127)
}

/// Nearest E4M3 code, ties to even; magnitudes above 448 become 448.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // the code is below 2^8
pub(super) fn e4m3_code(x: f32) -> u8 {
    let sign = x.to_bits() >> 24 & 0x80;
    let magnitude = x.abs().min(E4M3_MAX);
    // Below 2^-6 the spacing is 2^-9; above, three bits of mantissa.
    let e = ((magnitude.to_bits() >> 23).cast_signed() - 127).max(-6);
    // `steps` is 8..=16 for a normal number and 0..=8 for a subnormal one: adding lets a carry move into the exponent.
    let steps = (magnitude.mul_add(two_to(3 - e), ROUND))
        .to_bits()
        .wrapping_sub(ROUND.to_bits());
    (sign | ((e + 6).cast_unsigned() << 3).wrapping_add(steps)) as u8
}

/// The value of an E4M3 code; 0x7f and 0xff, which stand for no number, are never written.
#[inline(always)]
pub(super) fn e4m3_value(code: u8) -> f32 {
    let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7f));
    let normal = (magnitude << 20) + (120 << 23);
    // A subnormal code counts in steps of 2^-9: read one exponent higher, its leading one is 2^-6 too much.
    let small = f32::from_bits(normal + (1 << 23)) - two_to(-6);
    let value = if magnitude < 8 { small.to_bits() } else { normal };
    f32::from_bits(value | sign)
}

/// Magnitudes at which the next E2M1 code begins; at a tie the even code is taken.
const E2M1_FROM: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// Nearest E2M1 code, ties to the even code; magnitudes above 6 become 6.
#[inline(always)]
pub(super) fn e2m1_code(x: f32) -> u8 {
    let magnitude = x.abs();
    let mut code = 0;
    for (i, from) in E2M1_FROM.iter().enumerate() {
        let reached = if i % 2 == 0 {
            magnitude > *from
        } else {
            magnitude >= *from
        };
        code += u8::from(reached);
    }
    code | u8::from(x.is_sign_negative()) << 3
}

/// Twice the value of an E2M1 code: an integer.
#[inline(always)]
pub(crate) const fn e2m1_twice(code: u8) -> i8 {
    const TWICE: [i8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];
    let magnitude = TWICE[(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Nearest half, ties to even, as bits; beyond the largest, infinity.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // 16 bits are left
pub(super) fn half_code(x: f32) -> u16 {
    let (bits, sign) = (x.to_bits() & 0x7fff_ffff, x.to_bits() >> 16 & 0x8000);
    // One half has the spacing of a subnormal half: the sum rounds to it.
    let small = (f32::from_bits(bits) + 0.5)
        .to_bits()
        .wrapping_sub(0.5f32.to_bits());
    let odd = bits >> 13 & 1;
    let normal = bits.wrapping_add(0xfff + odd).wrapping_sub(112 << 23) >> 13;
    let finite = if bits < (113 << 23) { small } else { normal };
    let special = if bits > (255 << 23) { 0x7e00 } else { 0x7c00 };
    // 65520 is the first magnitude that rounds to infinity.
    (sign | if bits >= 0x477f_f000 { special } else { finite }) as u16
}

/// The value of a half's bits.
#[inline(always)]
pub(super) fn half_value(code: u16) -> f32 {
    let (sign, magnitude) = (u32::from(code & 0x8000) << 16, u32::from(code & 0x7fff));
    let normal = (magnitude << 13) + (112 << 23);
    let small = f32::from_bits(normal + (1 << 23)) - two_to(-14);
    let finite = if magnitude < 0x400 {
        small.to_bits()
    } else {
        normal
    };
    let value = if magnitude < 0x7c00 {
        finite
    } else {
        normal + (112 << 23)
    };
    f32::from_bits(value | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_code_has_its_value_and_is_the_nearest_to_it() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let magnitude = if e == 0 {
                m * power(-9)
            } else {
                (8.0 + m) * power(e - 10)
            };
            let expected = if code & 0x80 == 0 { magnitude } else { -magnitude };
            assert_eq!(e4m3_value(code).to_bits(), expected.to_bits(), "{code:#04x}");
            assert_eq!(e4m3_code(expected), code);
        }
        for code in 0..0x7e {
            let middle = (e4m3_value(code) + e4m3_value(code + 1)) / 2.0;
            assert_eq!(
                e4m3_code(middle),
                code + (code & 1),
                "a tie goes to the even code"
            );
            assert_eq!(e4m3_code(middle * 1.000_001), code + 1);
            assert_eq!(e4m3_code(middle * 0.999_999), code);
        }
        assert_eq!((e4m3_code(1e9), e4m3_code(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn every_e2m1_code_is_the_nearest_to_its_value() {
        let value = |code| f32::from(e2m1_twice(code)) / 2.0;
        for code in 0..16 {
            let x = if code == 8 { -0.0 } else { value(code) };
            assert_eq!(e2m1_code(x), code);
        }
        for code in 0..7 {
            let middle = (value(code) + value(code + 1)) / 2.0;
            assert_eq!(
                e2m1_code(middle),
                code + (code & 1),
                "a tie goes to the even code"
            );
            assert_eq!(e2m1_code(-middle * 1.000_001), (code + 1) | 8);
        }
        assert_eq!(e2m1_code(1e9), 7);
    }

    #[test]
    fn halves_are_those_of_the_half_crate() {
        for code in 0..=u16::MAX {
            let expected = half::f16::from_bits(code);
            assert!(
                half_value(code).to_bits() == expected.to_f32().to_bits() || expected.is_nan(),
                "{code:#06x}"
            );
        }
        for bits in (0..=u32::MAX).step_by(if cfg!(miri) { 99_999_989 } else { 65_521 }) {
            let x = f32::from_bits(bits);
            let expected = half::f16::from_f32(x);
            assert!(half_code(x) == expected.to_bits() || expected.is_nan(), "{x}");
        }
    }
}
