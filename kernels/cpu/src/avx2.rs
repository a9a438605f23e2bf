//! The inner products in AVX2. Reached only through [`INNER`], which is handed out after detection.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_cvtepi8_epi16, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_ps, _mm256_storeu_si256,
};

use ds4_kernels::LANES;
use ds4_kernels::block::{Block, GROUP};

use crate::level::Inner;

/// Only for machines where AVX2 and FMA were detected.
pub(crate) const INNER: Inner = Inner {
    // SAFETY: `Inner::of` gives these functions out only where both features were detected.
    dot: |a, b| unsafe { dot(a, b) },
    // SAFETY: as above.
    axpy: |factor, x, y| unsafe { axpy(factor, x, y) },
    // SAFETY: as above.
    block: |block, codes| unsafe { block_dot(block, codes) },
};

/// The 32 lanes of [`ds4_kernels::dot_f32`] in four registers, folded in the same tree.
#[target_feature(enable = "avx2,fma")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes: [__m256; 4] = [_mm256_setzero_ps(); 4];
    let (a_full, a_rest) = a.as_chunks::<LANES>();
    let (b_full, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_full.iter().zip(b_full) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = _mm256_fmadd_ps(load(a, 8 * i), load(b, 8 * i), *lane);
        }
    }
    if !a_rest.is_empty() {
        return dot_rest(lanes, a_rest, b_rest);
    }
    fold8(_mm256_add_ps(
        _mm256_add_ps(lanes[0], lanes[2]),
        _mm256_add_ps(lanes[1], lanes[3]),
    ))
}

/// A last, partial step: those lanes alone take another product.
#[target_feature(enable = "avx2,fma")]
fn dot_rest(lanes: [__m256; 4], a: &[f32], b: &[f32]) -> f32 {
    let mut all = [0.0f32; LANES];
    for (part, lane) in all.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
        store(part, lane);
    }
    all.iter_mut()
        .zip(a.iter().zip(b))
        .for_each(|(lane, (x, y))| *lane = x.mul_add(*y, *lane));
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            all[i] += all[i + half];
        }
        half /= 2;
    }
    all[0]
}

#[target_feature(enable = "avx2,fma")]
fn fold8(lanes: __m256) -> f32 {
    let mut eight = [0.0f32; 8];
    store(&mut eight, lanes);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[target_feature(enable = "avx2,fma")]
fn axpy(factor: f32, x: &[f32], y: &mut [f32]) {
    let wide = _mm256_set1_ps(factor);
    let (x_full, x_rest) = x.as_chunks::<8>();
    let (y_full, y_rest) = y.as_chunks_mut::<8>();
    for (x, y) in x_full.iter().zip(y_full) {
        let sum = _mm256_fmadd_ps(wide, load(x, 0), load(y, 0));
        store(y, sum);
    }
    y_rest
        .iter_mut()
        .zip(x_rest)
        .for_each(|(y, x)| *y = factor.mul_add(*x, *y));
}

/// The integers of [`Block::dot`]: 16 values a step, sums of two products in 32 bits.
#[target_feature(enable = "avx2,fma")]
fn block_dot(block: &Block, codes: &[i8]) -> (i32, i32) {
    let (mut dot, mut minimums) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    let groups = block
        .weights
        .as_chunks::<GROUP>()
        .0
        .iter()
        .zip(codes.as_chunks::<GROUP>().0)
        .zip(&block.minimums);
    for ((weights, codes), minimum) in groups {
        let x = widen(codes);
        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(load_i16(weights), x));
        if block.dmin != 0.0 {
            minimums = _mm256_add_epi32(minimums, _mm256_madd_epi16(_mm256_set1_epi16(*minimum), x));
        }
    }
    (sum(dot), sum(minimums))
}

#[target_feature(enable = "avx2")]
fn sum(lanes: __m256i) -> i32 {
    let mut eight = [0i32; 8];
    // SAFETY: the array is 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), lanes) };
    eight.iter().sum()
}

#[target_feature(enable = "avx2")]
fn widen(codes: &[i8; GROUP]) -> __m256i {
    // SAFETY: 16 bytes are there; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn load_i16(values: &[i16; GROUP]) -> __m256i {
    // SAFETY: 32 bytes are there; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load(values: &[f32], at: usize) -> __m256 {
    let eight = &values[at..at + 8];
    // SAFETY: the slice was just taken: eight values are there; the load needs no alignment.
    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
}

#[target_feature(enable = "avx2")]
fn store(out: &mut [f32; 8], lanes: __m256) {
    // SAFETY: the array has room for eight values; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), lanes) };
}
