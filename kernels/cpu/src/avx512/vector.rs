//! 16 rows times one token, straight from the file: 8 or 16 rows in flight, nothing unpacked to memory.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512i, _CMP_NEQ_UQ, _MM_HINT_T0, _mm_and_si128, _mm_cvtsi64_si128,
    _mm_loadu_si128, _mm_prefetch, _mm_set1_epi8, _mm_srli_epi16, _mm256_add_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_dpbusd_epi32, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm256_xor_si256, _mm512_add_epi32, _mm512_castsi256_si512, _mm512_cmp_ps_mask,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_mask_sub_epi8,
    _mm512_mask3_fnmadd_ps, _mm512_mul_ps, _mm512_permutexvar_epi32, _mm512_set_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps, _mm512_zextsi256_si512,
};
use std::array::from_fn;

use ds4_kernels::{Format, half_of_power};

use super::chunk::{Iq2, load16, load32, load64, mxfp4_block, q2_k, q2_k_steps, q4_k, q4_k_scales};
use super::fold::{sums, sums8};
use super::panel::halves;
use crate::operands::{ROWS, Rows, Token};

/// Rows of 32-value blocks in flight.
const HALF: usize = ROWS / 2;

/// The integers of one row's block: lanes yet to be added, of the weights and of the minimums.
struct Lanes {
    dots: __m512i,
    minimums: __m256i,
}

/// The products of the rows with one token.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn product(rows: &Rows<'_>, token: &Token<'_>) -> [f32; ROWS] {
    match rows.format() {
        Format::Q8_0 => bytes(rows, token, |block| q8_0(block), |eight| q8_0_scales(eight)),
        Format::Mxfp4 => bytes(
            rows,
            token,
            |block| mxfp4_block(block),
            |eight| mxfp4_scales(eight),
        ),
        Format::Q2K => blocks::<84, true>(rows, token, 80, 82, |block, x| two(block, x)),
        Format::Q4K => blocks::<144, true>(rows, token, 0, 2, |block, x| four(block, x)),
        Format::Iq2Xxs => blocks::<66, false>(rows, token, 0, 0, |block, x| grid(block, x)),
        format => unreachable!("{format} has no 8-bit activations"),
    }
}

/// Blocks of 32 signed values: `codes` offset to unsigned, `scales` of eight rows.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn bytes<const BYTES: usize>(
    rows: &Rows<'_>,
    token: &Token<'_>,
    codes: impl Fn(&[u8; BYTES]) -> __m256i,
    scales: impl Fn([&[u8; BYTES]; HALF]) -> __m256,
) -> [f32; ROWS] {
    let mut out = [0.0; ROWS];
    for (half, out) in out.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
        if half * HALF >= rows.count() {
            break;
        }
        let rows = rows.blocks_of::<HALF, BYTES>(half * HALF);
        let ahead = rows[0].len() * BYTES * HALF;
        let mut total = _mm256_setzero_ps();
        let parts = token
            .codes
            .as_chunks::<32>()
            .0
            .iter()
            .zip(token.offsets)
            .zip(token.scales);
        for (block, ((x, offset), scale)) in parts.enumerate() {
            let eight: [&[u8; BYTES]; HALF] = from_fn(|row| &rows[row][block]);
            let x = load_codes(x);
            let dots = from_fn(|row| {
                prefetch(eight[row].as_ptr(), ahead);
                _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes(eight[row]), x)
            });
            let dots = _mm256_add_epi32(sums8(&dots), _mm256_set1_epi32(*offset));
            let scale = _mm256_mul_ps(scales(eight), _mm256_set1_ps(*scale));
            total = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots), total);
        }
        // SAFETY: the array has room for eight values.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
    }
    out
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn q8_0(block: &[u8; 34]) -> __m256i {
    _mm256_xor_si256(load32(block, 2), _mm256_set1_epi8(i8::MIN))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn q8_0_scales(blocks: [&[u8; 34]; HALF]) -> __m256 {
    let bits = blocks.map(|block| u16::from_le_bytes([block[0], block[1]]));
    // SAFETY: the array is 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast::<__m128i>()) })
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn mxfp4_scales(blocks: [&[u8; 17]; HALF]) -> __m256 {
    let scales = blocks.map(|block| half_of_power(block[0]));
    // SAFETY: the array is 32 bytes.
    unsafe { _mm256_loadu_ps(scales.as_ptr()) }
}

/// Blocks of 256 values with the scales at bytes `d` and, with minimums, `dmin`; `lanes` gives a row's integers.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn blocks<const BYTES: usize, const MINIMUMS: bool>(
    rows: &Rows<'_>,
    token: &Token<'_>,
    d: usize,
    dmin: usize,
    lanes: impl Fn(&[u8; BYTES], &Input) -> Lanes,
) -> [f32; ROWS] {
    let rows = rows.blocks_of::<ROWS, BYTES>(0);
    let ahead = rows[0].len() * BYTES * ROWS;
    let mut total = _mm512_setzero_ps();
    for (block, scale) in token.scales.iter().enumerate() {
        let x = Input::new(token, block);
        let mut dots = [_mm512_setzero_si512(); ROWS];
        let mut minimums = [_mm512_setzero_si512(); ROWS];
        for (row, (dots, minimums)) in dots.iter_mut().zip(&mut minimums).enumerate() {
            let bytes = &rows[row][block];
            prefetch(bytes.as_ptr(), ahead);
            let lanes = lanes(bytes, &x);
            *dots = lanes.dots;
            if MINIMUMS {
                *minimums = _mm512_zextsi256_si512(lanes.minimums);
            }
        }
        let mut d = halves(&rows, block, d);
        if !MINIMUMS {
            d = _mm512_mul_ps(d, _mm512_set1_ps(0.125)); // `IQ2_XXS`, as in its block
        }
        let scale = _mm512_set1_ps(*scale);
        total = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), _mm512_cvtepi32_ps(sums(&dots)), total);
        if MINIMUMS {
            let dmin = halves(&rows, block, dmin);
            let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(dmin, _mm512_setzero_ps());
            let minimums = _mm512_cvtepi32_ps(sums(&minimums));
            total = _mm512_mask3_fnmadd_ps(_mm512_mul_ps(dmin, scale), minimums, total, some);
        }
    }
    let mut out = [0.0; ROWS];
    // SAFETY: the array has room for 16 values.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
    out
}

/// One block of activations.
struct Input {
    codes: [__m512i; 4],
    /// Of 16 codes each.
    sums: __m256i,
}

impl Input {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn new(token: &Token<'_>, block: usize) -> Self {
        let sums = &token.sums[16 * block..][..16];
        Self {
            codes: from_fn(|chunk| load64(token.codes, 256 * block + 64 * chunk)),
            // SAFETY: the slice was just taken: 32 bytes.
            sums: unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) },
        }
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn two(block: &[u8; 84], x: &Input) -> Lanes {
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q2_k(block, chunk), x.codes[chunk]);
        dots = add_scaled(dots, part, q2_k_steps(block, chunk));
    }
    let minimums = _mm_and_si128(_mm_srli_epi16::<4>(load16(block, 0)), _mm_set1_epi8(15));
    Lanes {
        dots,
        minimums: _mm256_madd_epi16(_mm256_cvtepu8_epi16(minimums), x.sums),
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn four(block: &[u8; 144], x: &Input) -> Lanes {
    let (steps, minimums) = q4_k_scales(block);
    let steps = _mm512_castsi256_si512(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(steps.cast_signed())));
    // Steps 0 and 1 for the first chunk: 32 values are 8 lanes.
    let mut of_chunk = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q4_k(block, chunk), x.codes[chunk]);
        dots = add_scaled(dots, part, _mm512_permutexvar_epi32(of_chunk, steps));
        of_chunk = _mm512_add_epi32(of_chunk, std::arch::x86_64::_mm512_set1_epi32(2));
    }
    let minimums = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(minimums.cast_signed()));
    let minimums = _mm256_or_si256(minimums, _mm256_slli_epi32::<16>(minimums));
    Lanes {
        dots,
        minimums: _mm256_madd_epi16(minimums, x.sums),
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn grid(block: &[u8; 66], x: &Input) -> Lanes {
    let shared = Iq2::new(block);
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let (magnitudes, minus) = shared.chunk(block, chunk);
        let codes = x.codes[chunk];
        // Codes are symmetric, so a weight's sign can be the code's.
        let signed = _mm512_mask_sub_epi8(codes, minus, _mm512_setzero_si512(), codes);
        let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes, signed);
        dots = add_scaled(dots, part, shared.chunk_steps(chunk));
    }
    Lanes {
        dots,
        minimums: _mm256_setzero_si256(),
    }
}

/// Adds `parts` times `steps`. A part is the sum of four products, at most 4 * 43 * 127: it fits 16 bits, so that its lower half alone is
/// multiplied (the upper half of a step is zero) and one instruction does it.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn add_scaled(sum: __m512i, parts: __m512i, steps: __m512i) -> __m512i {
    _mm512_dpwssd_epi32(sum, parts, steps)
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn load_codes(codes: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// Asks for the bytes that the next rows have here. The address need not be mapped.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn prefetch(bytes: *const u8, ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(ahead).cast());
}
