//! Rows times one token, straight from the file: nothing is unpacked to memory.
//!
//! Rows are read one after the other, so that memory sees one stream. A row's integers come out eight blocks at a time; for the fused
//! multiply-adds, which go block by block, those of eight rows are transposed.

use std::arch::x86_64::{
    __m256, __m256i, __m512i, _CMP_NEQ_UQ, _mm_and_si128, _mm_cvtsi64_si128, _mm_loadu_si128, _mm_set1_epi8,
    _mm_srli_epi16, _mm256_add_epi32, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps_mask,
    _mm256_cmplt_epi32_mask, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_dpbusd_epi32, _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mask_mov_epi32,
    _mm256_mask3_fnmadd_ps, _mm256_maskz_loadu_epi32, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_sllv_epi32, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_xor_si256, _mm512_add_epi32,
    _mm512_castsi256_si512, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_mask_sub_epi8,
    _mm512_permutexvar_epi32, _mm512_set_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
};
use std::array::from_fn;

use ds4_kernels::Format;

use super::chunk::{Iq2, load16, load32, load64, mxfp4_block, q2_k, q2_k_steps, q4_k, q4_k_scales};
use super::fold::{sums_of_wide, sums8, transpose8};
use crate::operands::{ROWS, Rows, Token};

/// Blocks whose integers a row gives at a time, and rows that are transposed: the lanes of 256 bits.
const EIGHT: usize = 8;

/// Eight blocks of one row.
#[derive(Clone, Copy)]
struct Run {
    dots: __m256i,
    d: __m256,
    minimums: __m256i,
    dmin: __m256,
}

/// The integers of one row's block: lanes yet to be added, of the weights and of the minimums.
struct Lanes {
    dots: __m512i,
    minimums: __m256i,
}

/// The products of the rows with one token.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn product(rows: &Rows<'_>, token: &Token<'_>) -> [f32; ROWS] {
    match rows.format() {
        Format::Q8_0 => bytes(rows, token, |block| q8_0(block), |block| halves(block, 0)),
        Format::Mxfp4 => bytes(rows, token, |block| mxfp4_block(block), |blocks| powers(blocks)),
        Format::Q2K => blocks::<84, true>(rows, token, [80, 82], |block, x| two(block, x)),
        Format::Q4K => blocks::<144, true>(rows, token, [0, 2], |block, x| four(block, x)),
        Format::Iq2Xxs => blocks::<66, false>(rows, token, [0, 0], |block, x| grid(block, x)),
        format => unreachable!("{format} has no 8-bit activations"),
    }
}

/// Blocks of 32 signed values: `codes` offset to unsigned, `scales` of up to eight blocks.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn bytes<const BYTES: usize>(
    rows: &Rows<'_>,
    token: &Token<'_>,
    codes: impl Fn(&[u8; BYTES]) -> __m256i,
    scales: impl Fn(&[[u8; BYTES]; EIGHT]) -> __m256,
) -> [f32; ROWS] {
    let x = token.codes.as_chunks::<32>().0;
    // 64 blocks, 2048 values, of a row before the next: long enough a stream, and the results stay in the first cache.
    product_of::<BYTES, 8, false>(rows, token, |blocks, first| {
        let dots = from_fn(|i| {
            let x = load_codes(&x[(first + i).min(x.len() - 1)]);
            _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes(&blocks[i]), x)
        });
        let offsets = &token.offsets[first..token.offsets.len().min(first + EIGHT)];
        // SAFETY: masked to the values of the slice.
        let offsets =
            unsafe { _mm256_maskz_loadu_epi32(u8::MAX >> (EIGHT - offsets.len()), offsets.as_ptr()) };
        Run {
            dots: _mm256_add_epi32(sums8(&dots), offsets),
            d: scales(blocks),
            minimums: _mm256_setzero_si256(),
            dmin: _mm256_setzero_ps(),
        }
    })
}

/// Blocks of 256 values with the scales of weights and minimums at the bytes `at`; `lanes` gives a block's integers.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn blocks<const BYTES: usize, const MINIMUMS: bool>(
    rows: &Rows<'_>,
    token: &Token<'_>,
    at: [usize; 2],
    lanes: impl Fn(&[u8; BYTES], &Input<'_>) -> Lanes,
) -> [f32; ROWS] {
    product_of::<BYTES, 1, MINIMUMS>(rows, token, |blocks, first| {
        let last = token.scales.len() - 1;
        let mut dots = [_mm512_setzero_si512(); EIGHT];
        let mut minimums = [_mm256_setzero_si256(); EIGHT];
        for i in 0..EIGHT {
            let lanes = lanes(&blocks[i], &Input::new(token, (first + i).min(last)));
            dots[i] = lanes.dots;
            if MINIMUMS {
                minimums[i] = lanes.minimums;
            }
        }
        let d = halves(blocks, at[0]);
        Run {
            dots: sums_of_wide(&dots),
            // `IQ2_XXS`: an eighth completes the scale, as in its block.
            d: if MINIMUMS {
                d
            } else {
                _mm256_mul_ps(d, _mm256_set1_ps(0.125))
            },
            minimums: if MINIMUMS { sums8(&minimums) } else { minimums[0] },
            dmin: if MINIMUMS { halves(blocks, at[1]) } else { d },
        }
    })
}

/// Eight rows at a time, `RUNS` runs of eight blocks of each; `run(blocks, number of the first)` computes one. A row's last run is filled up
/// with blocks of zeros, whose results are not used.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn product_of<const BYTES: usize, const RUNS: usize, const MINIMUMS: bool>(
    rows: &Rows<'_>,
    token: &Token<'_>,
    run: impl Fn(&[[u8; BYTES]; EIGHT], usize) -> Run,
) -> [f32; ROWS] {
    let mut out = [0.0; ROWS];
    for (half, out) in out.as_chunks_mut::<EIGHT>().0.iter_mut().enumerate() {
        if half * EIGHT >= rows.count() {
            break;
        }
        let rows = rows.blocks_of::<EIGHT, BYTES>(half * EIGHT);
        let empty = Run {
            dots: _mm256_setzero_si256(),
            d: _mm256_setzero_ps(),
            minimums: _mm256_setzero_si256(),
            dmin: _mm256_setzero_ps(),
        };
        let mut runs = [[empty; EIGHT]; RUNS];
        let mut total = _mm256_setzero_ps();
        for first in (0..token.scales.len()).step_by(EIGHT * RUNS) {
            for (row, blocks) in rows.iter().enumerate() {
                let blocks = &blocks[first..blocks.len().min(first + EIGHT * RUNS)];
                for (i, blocks) in blocks.chunks(EIGHT).enumerate() {
                    let filled;
                    let eight = match blocks.as_array::<EIGHT>() {
                        Some(eight) => eight,
                        None => {
                            filled = from_fn(|i| blocks.get(i).copied().unwrap_or([0; BYTES]));
                            &filled
                        }
                    };
                    runs[i][row] = run(eight, first + EIGHT * i);
                }
            }
            let scales = token.scales[first..].chunks(EIGHT);
            for (runs, scales) in runs.iter().zip(scales) {
                total = accumulate::<MINIMUMS>(runs, scales, total);
            }
        }
        // SAFETY: the array has room for eight values.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
    }
    out
}

/// Block after block, as `ds4_kernels::block::Block::accumulate`: one fused multiply-add for the weights and one for the minimums.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn accumulate<const MINIMUMS: bool>(rows: &[Run; EIGHT], scales: &[f32], mut total: __m256) -> __m256 {
    let dots = transpose8(rows.map(|row| row.dots));
    let d = transpose8(rows.map(|row| _mm256_castps_si256(row.d)));
    let minimums = if MINIMUMS {
        transpose8(rows.map(|row| row.minimums))
    } else {
        dots
    };
    let dmin = if MINIMUMS {
        transpose8(rows.map(|row| _mm256_castps_si256(row.dmin)))
    } else {
        d
    };
    for (i, scale) in scales.iter().enumerate() {
        let scale = _mm256_set1_ps(*scale);
        let factor = _mm256_mul_ps(_mm256_castsi256_ps(d[i]), scale);
        total = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dots[i]), total);
        if MINIMUMS {
            let dmin = _mm256_castsi256_ps(dmin[i]);
            let some = _mm256_cmp_ps_mask::<_CMP_NEQ_UQ>(dmin, _mm256_setzero_ps());
            let factor = _mm256_mul_ps(dmin, scale);
            total = _mm256_mask3_fnmadd_ps(factor, _mm256_cvtepi32_ps(minimums[i]), total, some);
        }
    }
    total
}

/// The halves at byte `at` of eight blocks, widened.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn halves<const BYTES: usize>(blocks: &[[u8; BYTES]; EIGHT], at: usize) -> __m256 {
    let bits: [u16; EIGHT] = from_fn(|i| u16::from_le_bytes([blocks[i][at], blocks[i][at + 1]]));
    // SAFETY: the array is 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}

/// The halved powers of two of eight blocks, as [`ds4_kernels::half_of_power`] has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn powers(blocks: &[[u8; 17]; EIGHT]) -> __m256 {
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
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn q8_0(block: &[u8; 34]) -> __m256i {
    _mm256_xor_si256(load32(block, 2), _mm256_set1_epi8(i8::MIN))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn load_codes(codes: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// One block of activations.
struct Input<'a> {
    codes: &'a [i8; 256],
    /// Of 16 codes each.
    sums: &'a [i16; 16],
}

impl<'a> Input<'a> {
    #[inline]
    fn new(token: &Token<'a>, block: usize) -> Self {
        Self {
            codes: &token.codes.as_chunks().0[block],
            sums: &token.sums.as_chunks().0[block],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn chunk(&self, chunk: usize) -> __m512i {
        load64(self.codes, 64 * chunk)
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn sums(&self) -> __m256i {
        // SAFETY: the array is 32 bytes.
        unsafe { _mm256_loadu_si256(self.sums.as_ptr().cast()) }
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn two(block: &[u8; 84], x: &Input<'_>) -> Lanes {
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q2_k(block, chunk), x.chunk(chunk));
        dots = add_scaled(dots, part, q2_k_steps(block, chunk));
    }
    let minimums = _mm_and_si128(_mm_srli_epi16::<4>(load16(block, 0)), _mm_set1_epi8(15));
    Lanes {
        dots,
        minimums: _mm256_madd_epi16(_mm256_cvtepu8_epi16(minimums), x.sums()),
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn four(block: &[u8; 144], x: &Input<'_>) -> Lanes {
    let (steps, minimums) = q4_k_scales(block);
    let steps = _mm512_castsi256_si512(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(steps.cast_signed())));
    // Steps 0 and 1 for the first chunk: 32 values are 8 lanes.
    let mut of_chunk = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q4_k(block, chunk), x.chunk(chunk));
        dots = add_scaled(dots, part, _mm512_permutexvar_epi32(of_chunk, steps));
        of_chunk = _mm512_add_epi32(of_chunk, _mm512_set1_epi32(2));
    }
    let minimums = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(minimums.cast_signed()));
    let minimums = _mm256_or_si256(minimums, _mm256_slli_epi32::<16>(minimums));
    Lanes {
        dots,
        minimums: _mm256_madd_epi16(minimums, x.sums()),
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn grid(block: &[u8; 66], x: &Input<'_>) -> Lanes {
    let shared = Iq2::new(block);
    let mut dots = _mm512_setzero_si512();
    for chunk in 0..4 {
        let (magnitudes, minus) = shared.chunk(chunk);
        let codes = x.chunk(chunk);
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
