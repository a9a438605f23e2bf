//! Activations to bytes, as [`ds4_kernels::quantize`] defines it: 256 values at a time.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_EQ_OQ, _CMP_ORD_Q, _mm_storeu_si128, _mm256_storeu_si256, _mm512_abs_ps,
    _mm512_add_epi32, _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_epi16, _mm512_loadu_ps, _mm512_maskz_cvtps_epi32, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_permutexvar_epi32, _mm512_reduce_max_ps, _mm512_set_epi32,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi32,
};

use ds4_kernels::{CodesMut, OFFSET, Q8_BLOCK, Q8K_BLOCK, quantize as scalar};

use super::fold::sums;

/// Values of a register.
const WIDTH: usize = 16;
/// Registers of 256 values.
const REGISTERS: usize = Q8K_BLOCK / WIDTH;

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn quantize(values: &[f32], block: usize, out: CodesMut<'_>) {
    let CodesMut {
        codes,
        scales,
        sums,
        offsets,
    } = out;
    assert_eq!(values.len(), codes.len(), "codes");
    let (wide, rest) = values.as_chunks::<Q8K_BLOCK>();
    let (wide_codes, codes) = codes.as_chunks_mut::<Q8K_BLOCK>();
    let (wide_scales, scales) = scales.split_at_mut(wide.len() * (Q8K_BLOCK / block));
    let (wide_sums, sums) = sums.as_chunks_mut::<REGISTERS>();
    let (wide_offsets, offsets) = offsets.as_chunks_mut::<{ REGISTERS / 2 }>();
    let parts = wide
        .iter()
        .zip(wide_codes)
        .zip(wide_scales.chunks_exact_mut(Q8K_BLOCK / block));
    for (((values, codes), scales), (sums, offsets)) in parts.zip(wide_sums.iter_mut().zip(wide_offsets)) {
        let registers = if block == Q8_BLOCK {
            q8(values, scales)
        } else {
            q8_k(values, scales)
        };
        store(&registers, codes, sums, offsets);
    }
    // Only blocks of 32 have a rest.
    let rest_out = CodesMut {
        codes,
        scales,
        sums,
        offsets,
    };
    scalar(rest, block, rest_out);
}

/// Codes of eight blocks of 32.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q8(values: &[f32; Q8K_BLOCK], scales: &mut [f32]) -> [__m512i; REGISTERS] {
    let mut codes = [_mm512_setzero_si512(); REGISTERS];
    for (block, scale) in scales.iter_mut().enumerate() {
        let two = [load(values, 2 * block), load(values, 2 * block + 1)];
        *scale = largest(&two) / 127.0;
        let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
        codes[2 * block] = code(two[0], inverse);
        codes[2 * block + 1] = code(two[1], inverse);
    }
    codes
}

/// Codes of one block of 256.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q8_k(values: &[f32; Q8K_BLOCK], scales: &mut [f32]) -> [__m512i; REGISTERS] {
    let mut registers = [_mm512_setzero_ps(); REGISTERS];
    for (i, register) in registers.iter_mut().enumerate() {
        *register = load(values, i);
    }
    let most = largest(&registers);
    let mut inverse = 0.0;
    scales[0] = 0.0;
    if most != 0.0 {
        // The first of several equal magnitudes gives the sign.
        let first = |(i, x): (usize, &__m512)| {
            let mask = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_abs_ps(*x), _mm512_set1_ps(most));
            (mask != 0).then(|| values[i * WIDTH + mask.trailing_zeros() as usize])
        };
        inverse = -127.0 / registers.iter().enumerate().find_map(first).unwrap_or(most);
        scales[0] = 1.0 / inverse;
    }
    let mut codes = [_mm512_setzero_si512(); REGISTERS];
    // No `map`: its calls would go through memory.
    for (code_of, x) in codes.iter_mut().zip(registers) {
        *code_of = code(x, inverse);
    }
    codes
}

/// The largest magnitude; what is no number does not count.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn largest(registers: &[__m512]) -> f32 {
    let mut most = _mm512_setzero_ps();
    for x in registers {
        // With an operand that is no number the instruction gives the second one.
        most = _mm512_max_ps(_mm512_abs_ps(*x), most);
    }
    _mm512_reduce_max_ps(most)
}

/// Nearest, ties to even, -127 to 127; 0 for what is no number.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn code(x: __m512, inverse: f32) -> __m512i {
    let x = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
    let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
    let clamped = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-127.0)), _mm512_set1_ps(127.0));
    _mm512_maskz_cvtps_epi32(number, clamped)
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store(
    registers: &[__m512i; REGISTERS],
    codes: &mut [i8; Q8K_BLOCK],
    group_sums: &mut [i16; REGISTERS],
    offsets: &mut [i32; REGISTERS / 2],
) {
    for (out, register) in codes.as_chunks_mut::<WIDTH>().0.iter_mut().zip(registers) {
        // SAFETY: 16 bytes, the size of the array.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(*register)) };
    }
    let sums = sums(registers);
    let pairs = _mm512_add_epi32(sums, _mm512_shuffle_epi32::<0b10_11_00_01>(sums));
    let even = _mm512_permutexvar_epi32(
        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 12, 10, 8, 6, 4, 2, 0),
        pairs,
    );
    let scaled = _mm512_mullo_epi32(even, _mm512_set1_epi32(-OFFSET));
    // SAFETY: 32 bytes each, the sizes of the arrays.
    unsafe {
        _mm256_storeu_si256(group_sums.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(sums));
        _mm256_storeu_si256(offsets.as_mut_ptr().cast(), _mm512_castsi512_si256(scaled));
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load(values: &[f32; Q8K_BLOCK], register: usize) -> __m512 {
    let part = &values[WIDTH * register..][..WIDTH];
    // SAFETY: the slice was just taken; the load needs no alignment.
    unsafe { _mm512_loadu_ps(part.as_ptr()) }
}
