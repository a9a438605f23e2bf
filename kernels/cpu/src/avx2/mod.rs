//! The inner products in AVX2. Reached only through [`KERNELS`], which is handed out after detection.

mod tile;

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_shuffle_epi32, _mm256_add_epi32,
    _mm256_add_ps, _mm256_castsi256_si128, _mm256_cvtepi8_epi16, _mm256_cvtph_ps, _mm256_extracti128_si256,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi16,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_ps,
};

use ds4_kernels::block::{Block, GROUP};
use ds4_kernels::{Format, LANES, dequantize_row, widen as widen_half};

use crate::kernels::Kernels;
use crate::operands::{Put, ROWS, Rows, Token};

/// Tokens below which rows are read from the file for each of them: unpacking takes longer than the products.
const FEW: usize = 3;

/// Only for machines where AVX2, FMA and F16C were detected.
pub(crate) const KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where the features were detected.
    product: |rows, tokens, put| unsafe { product(rows, tokens, put) },
    beside: None,
    tiled: None,
    plain: |rows, tokens, put| {
        // SAFETY: as above.
        let widen = |bytes: &[u8], out: &mut [f32]| unsafe { widen_halves(bytes, out) };
        // SAFETY: as above.
        crate::plain::product(rows, tokens, widen, |a, b| unsafe { dot(a, b) }, put);
    },
    // SAFETY: as above.
    dot: |a, b| unsafe { dot(a, b) },
    // SAFETY: as above.
    axpy: |factor, x, y| unsafe { axpy(factor, x, y) },
    quantize: ds4_kernels::quantize,
};

#[target_feature(enable = "avx2,fma,f16c")]
fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if tokens.len() > FEW {
        return tile::product(rows, tokens, put);
    }
    for (i, token) in tokens.iter().enumerate() {
        token.check(rows.cols(), rows.format().block_len());
        let mut out = [0.0; ROWS];
        for (row, out) in out[..rows.count()].iter_mut().enumerate() {
            *out = match rows.format() {
                Format::Q8_0 => q8_0(rows.row(row), token.codes, token.scales),
                format => blocks(format, rows.row(row), token),
            };
        }
        put(i, &out);
    }
}

/// A row of any format.
#[target_feature(enable = "avx2,fma")]
fn blocks(format: Format, row: &[u8], token: &Token<'_>) -> f32 {
    let blocks = row.chunks_exact(format.block_bytes());
    let parts = blocks
        .zip(token.codes.chunks_exact(format.block_len()))
        .zip(token.scales);
    let mut total = 0.0;
    for ((bytes, codes), scale) in parts {
        let block = Block::unpack(format, bytes);
        let (dot, minimums) = block_dot(&block, codes);
        total = block.accumulate(total, *scale, dot, minimums);
    }
    total
}

/// Halves to floats.
#[target_feature(enable = "avx2,f16c")]
fn widen_halves(bytes: &[u8], out: &mut [f32]) {
    let (halves, rest) = bytes.as_chunks::<16>();
    let (wide, out_rest) = out.as_chunks_mut::<8>();
    for (halves, out) in halves.iter().zip(wide) {
        // SAFETY: 16 bytes are read, the size of the array.
        store(
            out,
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.as_ptr().cast()) }),
        );
    }
    dequantize_row(Format::F16, rest, out_rest);
}

/// A `Q8_0` row: per block 32 exact products, then one fused multiply-add, as [`Block::accumulate`] does without minimums.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::cast_precision_loss)] // at most 32 * 127 * 128: exact
fn q8_0(row: &[u8], codes: &[i8], scales: &[f32]) -> f32 {
    let blocks = row.as_chunks::<34>().0.iter().zip(codes.as_chunks::<32>().0);
    let mut total = 0.0f32;
    for ((block, codes), scale) in blocks.zip(scales) {
        let d = widen_half(u16::from_le_bytes([block[0], block[1]]));
        let low = _mm256_madd_epi16(widen_at(&block[2..18]), widen(first(codes)));
        let high = _mm256_madd_epi16(widen_at(&block[18..34]), widen(second(codes)));
        let dot = sum(_mm256_add_epi32(low, high));
        total = (d * scale).mul_add(dot as f32, total);
    }
    total
}

/// The two halves of 32 codes.
fn first(codes: &[i8; 32]) -> &[i8; GROUP] {
    &codes.as_chunks::<GROUP>().0[0]
}

fn second(codes: &[i8; 32]) -> &[i8; GROUP] {
    &codes.as_chunks::<GROUP>().0[1]
}

#[target_feature(enable = "avx2")]
fn widen_at(bytes: &[u8]) -> __m256i {
    assert_eq!(bytes.len(), GROUP);
    // SAFETY: 16 bytes are there, as just checked; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

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
    let four = _mm_add_epi32(
        _mm256_castsi256_si128(lanes),
        _mm256_extracti128_si256::<1>(lanes),
    );
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two)))
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
