//! Tokens in the order of tiles.

use std::arch::x86_64::{
    __m512i, _mm256_and_si256, _mm256_castsi128_si256, _mm256_cvtepi16_epi8, _mm256_inserti128_si256,
    _mm256_loadu_si256, _mm256_set1_epi16, _mm256_srai_epi16, _mm512_setzero_si512, _mm512_store_si512,
    _mm512_zextsi256_si512,
};
use std::array::from_fn;

use ds4_kernels::Q8K_BLOCK;

use crate::avx512::chunk::{CHUNK, load64};
use crate::avx512::fold::transpose;
use crate::operands::Token;
use crate::tiled::{Columns, TOKENS, Tiled};

/// Of tokens in blocks of 256.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn prepare(tokens: &[Token<'_>]) -> Tiled {
    let cols = tokens[0].codes.len();
    let blocks = cols / Q8K_BLOCK;
    let mut columns = Vec::with_capacity(tokens.len().div_ceil(TOKENS) * blocks);
    tokens.iter().for_each(|token| token.check(cols, Q8K_BLOCK));
    // Every block overwrites all but the scales of missing tokens, whose sums nobody asks for.
    let mut all = Columns::ZERO;
    for some in tokens.chunks(TOKENS) {
        for block in 0..blocks {
            for (chunk, lines) in all
                .codes
                .as_chunks_mut::<{ CHUNK / 4 }>()
                .0
                .iter_mut()
                .enumerate()
            {
                let at = block * Q8K_BLOCK + chunk * CHUNK;
                store(
                    lines,
                    &transpose(from_fn(|t| match some.get(t) {
                        Some(token) => load64(token.codes, at),
                        None => _mm512_setzero_si512(),
                    })),
                );
            }
            let parts = transpose(from_fn(|t| match some.get(t) {
                Some(token) => parts(&token.sums.as_chunks().0[block]),
                None => _mm512_setzero_si512(),
            }));
            store(&mut all.sums, &parts);
            for (scale, token) in all.scales.iter_mut().zip(some) {
                *scale = token.scales[block];
            }
            columns.push(all);
        }
    }
    Tiled {
        count: tokens.len(),
        blocks,
        columns,
    }
}

/// Sums of 16 codes, at most 16 * 127 in magnitude, as `16 * high + low`: high parts, low parts, zeros.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn parts(sums: &[i16; 16]) -> __m512i {
    // SAFETY: the array is 32 bytes; the load needs no alignment.
    let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
    let high = _mm256_cvtepi16_epi8(_mm256_srai_epi16::<4>(sums));
    let low = _mm256_cvtepi16_epi8(_mm256_and_si256(sums, _mm256_set1_epi16(15)));
    _mm512_zextsi256_si512(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(high), low))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store(lines: &mut [[[i8; 4]; TOKENS]; 16], registers: &[__m512i; 16]) {
    for (line, register) in lines.iter_mut().zip(registers) {
        // SAFETY: a line is 64 bytes, and lines of `Columns` are aligned to them.
        unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), *register) };
    }
}
