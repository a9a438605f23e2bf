//! Rows times one token or a few, straight from the file: nothing is unpacked to memory.
//!
//! Eight rows go side by side, block after block, so that the integers of a block are the lanes of the fused multiply-adds.

use std::arch::x86_64::{
    __m256, __m256i, __m512i, _CMP_NEQ_UQ, _MM_HINT_T0, _mm_cvtsi64_si128, _mm_loadu_si128, _mm_prefetch,
    _mm256_add_epi32, _mm256_castsi256_ps, _mm256_cmp_ps_mask, _mm256_cmplt_epi32_mask, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_dpbusd_epi32, _mm256_fmadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_mask_mov_epi32, _mm256_mask3_fnmadd_ps, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_slli_epi32, _mm256_sllv_epi32, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_xor_si256,
    _mm512_add_epi32, _mm512_castsi256_si512, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32,
    _mm512_permutexvar_epi32, _mm512_set_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
};
use std::array::from_fn;

use ds4_kernels::Format;

use super::chunk::{CHUNK, load32, load64, mxfp4_block, q4_k};
use super::fold::{sums_of_wide, sums8};
use super::{pairs, planes};
use crate::operands::{Put, ROWS, Rows, Token};
use crate::q4_k;

/// Rows side by side: the lanes of 256 bits.
const EIGHT: usize = 8;
/// Tokens that share the unpacking of a block.
const AT_ONCE: usize = 4;

/// One block of eight rows, with `T` tokens: a lane for each row.
struct Eight<const T: usize> {
    dots: [__m256i; T],
    d: __m256,
    minimums: [__m256i; T],
    dmin: __m256,
}

/// Tokens that are multiplied this way: more of them pay for a panel. Rows that share registers are unpacked twice in less time.
pub(super) const fn most(format: Format) -> usize {
    match format {
        Format::Q2K | Format::Iq2Xxs => 2 * AT_ONCE,
        _ => AT_ONCE - 1,
    }
}

/// The products of the rows with a few tokens.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    let share = tokens.len().div_ceil(tokens.len().div_ceil(AT_ONCE));
    for (i, some) in tokens.chunks(share).enumerate() {
        let put: Put<'_> = &mut |token, values| put(i * share + token, values);
        match *some {
            [a] => of_tokens(rows, [a], put),
            [a, b] => of_tokens(rows, [a, b], put),
            [a, b, c] => of_tokens(rows, [a, b, c], put),
            [a, b, c, d] => of_tokens(rows, [a, b, c, d], put),
            _ => unreachable!("{} tokens at once, at most {AT_ONCE}", some.len()),
        }
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_tokens<const T: usize>(rows: &Rows<'_>, tokens: [Token<'_>; T], put: Put<'_>) {
    let values = match rows.format() {
        Format::Q8_0 => bytes(rows, &tokens, |block| q8_0(block), |blocks| halves(blocks, 0)),
        Format::Mxfp4 => bytes(rows, &tokens, |block| mxfp4_block(block), |blocks| powers(blocks)),
        Format::Q2K => product_of::<84, true, T>(rows, &tokens, |blocks, at| {
            let (dots, minimums) = pairs::dots(
                blocks,
                from_fn(|t| &tokens[t].codes.as_chunks().0[at]),
                from_fn(|t| &tokens[t].sums.as_chunks().0[at]),
            );
            Eight {
                dots,
                d: halves(blocks, 80),
                minimums,
                dmin: halves(blocks, 82),
            }
        }),
        Format::Q4K => product_of::<144, true, T>(rows, &tokens, |blocks, at| Eight {
            dots: dots(blocks, &tokens, at, |block, x| four(block, x)),
            d: halves(blocks, 0),
            minimums: minimums(blocks, &tokens, at, |block| minimums_q4_k(block)),
            dmin: halves(blocks, 2),
        }),
        Format::Iq2Xxs => planes::with(&tokens, |planes| {
            product_of::<66, false, T>(rows, &tokens, |blocks, at| Eight {
                dots: planes::dots(
                    blocks,
                    from_fn(|t| &planes[t][at]),
                    from_fn(|t| &tokens[t].offsets.as_chunks().0[at]),
                ),
                // An eighth completes the scale, as in its block.
                d: _mm256_mul_ps(halves(blocks, 0), _mm256_set1_ps(0.125)),
                minimums: [_mm256_setzero_si256(); T],
                dmin: _mm256_setzero_ps(),
            })
        }),
        format => unreachable!("{format} has no 8-bit activations"),
    };
    values.iter().enumerate().for_each(|(i, values)| put(i, values));
}

/// Blocks of 32 signed values: `codes` offset to unsigned, `scales` of eight rows.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn bytes<const BYTES: usize, const T: usize>(
    rows: &Rows<'_>,
    tokens: &[Token<'_>; T],
    codes: impl Fn(&[u8; BYTES]) -> __m256i,
    scales: impl Fn(&[&[u8; BYTES]; EIGHT]) -> __m256,
) -> [[f32; ROWS]; T] {
    product_of::<BYTES, false, T>(rows, tokens, |blocks, at| {
        let codes = blocks.map(&codes);
        let dots = |token: &Token<'_>| {
            let x = load_codes(&token.codes.as_chunks().0[at]);
            let lanes = codes.map(|codes| _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, x));
            _mm256_add_epi32(sums8(&lanes), _mm256_set1_epi32(token.offsets[at]))
        };
        Eight {
            dots: from_fn(|t| dots(&tokens[t])),
            d: scales(blocks),
            minimums: [_mm256_setzero_si256(); T],
            dmin: _mm256_setzero_ps(),
        }
    })
}

/// The integers of block `at` of eight rows with each token; `lanes` gives those of one row, yet to be added.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn dots<const BYTES: usize, const T: usize>(
    blocks: &[&[u8; BYTES]; EIGHT],
    tokens: &[Token<'_>; T],
    at: usize,
    lanes: impl Fn(&[u8; BYTES], &[&[i8; 256]; T]) -> [__m512i; T],
) -> [__m256i; T] {
    let x = from_fn(|t| &tokens[t].codes.as_chunks().0[at]);
    let mut all = [[_mm512_setzero_si512(); EIGHT]; T];
    for (row, block) in blocks.iter().enumerate() {
        let lanes = lanes(block, &x);
        (0..T).for_each(|t| all[t][row] = lanes[t]);
    }
    from_fn(|t| sums_of_wide(&all[t]))
}

/// The integers of the minimums of block `at` of eight rows with each token; `of` gives those of one row's 16 groups.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn minimums<const BYTES: usize, const T: usize>(
    blocks: &[&[u8; BYTES]; EIGHT],
    tokens: &[Token<'_>; T],
    at: usize,
    of: impl Fn(&[u8; BYTES]) -> __m256i,
) -> [__m256i; T] {
    let of_rows = blocks.map(of);
    from_fn(|t| {
        let sums: &[i16; 16] = &tokens[t].sums.as_chunks().0[at];
        // SAFETY: the array is 32 bytes.
        let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        sums8(&of_rows.map(|minimums| _mm256_madd_epi16(minimums, sums)))
    })
}

/// Eight rows at a time, block after block as `ds4_kernels::block::Block::accumulate`: one fused multiply-add for the weights and one for the
/// minimums. Meanwhile memory is asked for the next eight rows, from their first byte to their last: left to itself it would see eight
/// streams, and stop at the end of each page.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn product_of<const BYTES: usize, const MINIMUMS: bool, const T: usize>(
    rows: &Rows<'_>,
    tokens: &[Token<'_>; T],
    of_block: impl Fn(&[&[u8; BYTES]; EIGHT], usize) -> Eight<T>,
) -> [[f32; ROWS]; T] {
    let mut out = [[0.0; ROWS]; T];
    for first in (0..rows.count()).step_by(EIGHT) {
        let rows = rows.blocks_of::<EIGHT, BYTES>(first);
        let mut totals = [_mm256_setzero_ps(); T];
        let count = rows[0].len();
        assert!(
            rows.iter().all(|row| row.len() == count)
                && tokens.iter().all(|token| token.scales.len() == count)
        );
        for at in 0..count {
            ask(rows[0].as_ptr().wrapping_add(EIGHT * (count + at)), EIGHT * BYTES);
            // SAFETY: all rows have `count` blocks, as asserted.
            let eight = of_block(&rows.map(|row| unsafe { row.get_unchecked(at) }), at);
            for t in 0..T {
                // SAFETY: all tokens have `count` scales, as asserted.
                let scale = _mm256_set1_ps(unsafe { *tokens[t].scales.get_unchecked(at) });
                let factor = _mm256_mul_ps(eight.d, scale);
                totals[t] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(eight.dots[t]), totals[t]);
                if MINIMUMS {
                    let some = _mm256_cmp_ps_mask::<_CMP_NEQ_UQ>(eight.dmin, _mm256_setzero_ps());
                    let factor = _mm256_mul_ps(eight.dmin, scale);
                    let minimums = _mm256_cvtepi32_ps(eight.minimums[t]);
                    totals[t] = _mm256_mask3_fnmadd_ps(factor, minimums, totals[t], some);
                }
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            let out = &mut out[first..first + EIGHT];
            // SAFETY: the slice has room for eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
        }
    }
    out
}

/// Asks memory for some bytes, which need not be mapped.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn ask<T>(start: *const T, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(start.cast::<i8>().wrapping_add(at));
    }
}

/// The halves at byte `at` of one block of eight rows, widened.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn halves<const BYTES: usize>(blocks: &[&[u8; BYTES]; EIGHT], at: usize) -> __m256 {
    let bits: [u16; EIGHT] = from_fn(|i| u16::from_le_bytes([blocks[i][at], blocks[i][at + 1]]));
    // SAFETY: the array is 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}

/// The halved powers of two of one block of eight rows, as [`ds4_kernels::half_of_power`] has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn powers(blocks: &[&[u8; 17]; EIGHT]) -> __m256 {
    let exponents: [i32; EIGHT] = from_fn(|i| i32::from(blocks[i][0]));
    // SAFETY: the array is 32 bytes.
    let exponents = unsafe { _mm256_loadu_si256(exponents.as_ptr().cast()) };
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
    // 0 and 1 stand for subnormals: bits 21 and 22.
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(1 << 21), exponents);
    let small = _mm256_cmplt_epi32_mask(exponents, _mm256_set1_epi32(2));
    _mm256_castsi256_ps(_mm256_mask_mov_epi32(normal, small, subnormal))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q8_0(block: &[u8; 34]) -> __m256i {
    _mm256_xor_si256(load32(block, 2), _mm256_set1_epi8(i8::MIN))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load_codes(codes: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn four<const T: usize>(block: &[u8; 144], x: &[&[i8; 256]; T]) -> [__m512i; T] {
    let steps = _mm_cvtsi64_si128(q4_k::scales(block).0.cast_signed());
    let steps = _mm512_castsi256_si512(_mm256_cvtepu8_epi32(steps));
    // Steps 0 and 1 for the first chunk: 32 values are 8 lanes.
    let mut of_chunk = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    let mut dots = [_mm512_setzero_si512(); T];
    for chunk in 0..4 {
        let (codes, steps) = (q4_k(block, chunk), _mm512_permutexvar_epi32(of_chunk, steps));
        for t in 0..T {
            let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load64(x[t], CHUNK * chunk));
            dots[t] = add_scaled(dots[t], part, steps);
        }
        of_chunk = _mm512_add_epi32(of_chunk, _mm512_set1_epi32(2));
    }
    dots
}

/// The minimums of a `Q4_K` block, each for both of its groups of 16.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn minimums_q4_k(block: &[u8; 144]) -> __m256i {
    let minimums = _mm_cvtsi64_si128(q4_k::scales(block).1.cast_signed());
    let minimums = _mm256_cvtepu8_epi32(minimums);
    _mm256_or_si256(minimums, _mm256_slli_epi32::<16>(minimums))
}

/// Adds `parts` times `steps`. A part is the sum of four products, at most 4 * 15 * 127: it fits 16 bits, so that its lower half alone is
/// multiplied (the upper half of a step is zero) and one instruction does it.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn add_scaled(sum: __m512i, parts: __m512i, steps: __m512i) -> __m512i {
    _mm512_dpwssd_epi32(sum, parts, steps)
}
