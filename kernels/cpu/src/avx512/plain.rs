//! `f32` products in the 32 lanes of [`ds4_kernels::dot_f32`]: two registers a sum.

use std::arch::x86_64::{
    __m512, __mmask16, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
    _mm256_castpd_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_castps_pd, _mm512_castps512_ps256, _mm512_cvtph_ps, _mm512_extractf64x4_pd, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use ds4_kernels::{Format, LANES, dequantize_row};

use crate::operands::{Put, ROWS, Rows};
use crate::plain::with_values;

/// Rows times tokens of a tile: 12 sums of two registers each.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 3;
/// Lanes of a register: half of those of a sum.
const WIDTH: usize = LANES / 2;

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[&[f32]], put: Put<'_>) {
    tokens
        .iter()
        .for_each(|x| assert_eq!(x.len(), rows.cols(), "activations"));
    with_values(
        rows,
        |bytes, out| widen(bytes, out),
        |values| {
            let four = |at: usize| -> [&[f32]; TILE_ROWS] {
                std::array::from_fn(|i| values[(at + i).min(rows.count() - 1)])
            };
            for (i, tokens) in tokens.chunks(TILE_TOKENS).enumerate() {
                let mut out = [[0.0; ROWS]; TILE_TOKENS];
                for at in (0..rows.count()).step_by(TILE_ROWS) {
                    match *tokens {
                        [a, b, c] => tile(&four(at), &[a, b, c], at, &mut out),
                        [a, b] => tile(&four(at), &[a, b], at, &mut out),
                        [a] => tile(&four(at), &[a], at, &mut out),
                        _ => unreachable!("chunks of one to three"),
                    }
                }
                for (j, values) in out[..tokens.len()].iter().enumerate() {
                    put(i * TILE_TOKENS + j, values);
                }
            }
        },
    );
}

/// Halves to floats.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn widen(bytes: &[u8], out: &mut [f32]) {
    let (halves, rest) = bytes.as_chunks::<{ 2 * WIDTH }>();
    let (wide, out_rest) = out.as_chunks_mut::<WIDTH>();
    for (halves, out) in halves.iter().zip(wide) {
        // SAFETY: 32 bytes are read and 16 values written, the sizes of the two arrays.
        unsafe {
            let values = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), values);
        }
    }
    dequantize_row(Format::F16, rest, out_rest);
}

/// Products of four rows with `T` tokens, to lanes `at` on of `out`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn tile<const T: usize>(
    rows: &[&[f32]; TILE_ROWS],
    tokens: &[&[f32]; T],
    at: usize,
    out: &mut [[f32; ROWS]; TILE_TOKENS],
) {
    let cols = tokens[0].len();
    assert!(rows.iter().chain(tokens).all(|values| values.len() == cols));
    let mut sums = [[[_mm512_setzero_ps(); 2]; T]; TILE_ROWS];
    let whole = cols / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        // SAFETY: 32 values from `k` on are inside all of them.
        unsafe {
            step::<T, 0>(rows, tokens, k, &mut sums, u16::MAX);
            step::<T, 1>(rows, tokens, k + WIDTH, &mut sums, u16::MAX);
        }
    }
    let (first, second) = ((cols - whole).min(WIDTH), (cols - whole).saturating_sub(WIDTH));
    if first > 0 {
        // SAFETY: masked to the values that there are.
        unsafe { step::<T, 0>(rows, tokens, whole, &mut sums, u16::MAX >> (WIDTH - first)) };
    }
    if second > 0 {
        // SAFETY: as above.
        unsafe {
            step::<T, 1>(
                rows,
                tokens,
                whole + WIDTH,
                &mut sums,
                u16::MAX >> (WIDTH - second),
            )
        };
    }
    for (r, sums) in sums.iter().enumerate() {
        for (out, sums) in out.iter_mut().zip(sums) {
            out[at + r] = fold(sums[0], sums[1]);
        }
    }
}

/// Adds 16 products to the half of the lanes that they belong to. Lanes outside `mask` stay as they are.
///
/// # Safety
/// The values from `k` on that `mask` names are inside all rows and tokens.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn step<const T: usize, const HALF: usize>(
    rows: &[&[f32]; TILE_ROWS],
    tokens: &[&[f32]; T],
    k: usize,
    sums: &mut [[[__m512; 2]; T]; TILE_ROWS],
    mask: __mmask16,
) {
    let load = |values: &[f32]| {
        // SAFETY: as the caller promised.
        unsafe {
            let start = values.as_ptr().add(k);
            if mask == u16::MAX {
                _mm512_loadu_ps(start)
            } else {
                _mm512_maskz_loadu_ps(mask, start)
            }
        }
    };
    let mut x = [_mm512_setzero_ps(); T];
    for t in 0..T {
        x[t] = load(tokens[t]);
    }
    for r in 0..TILE_ROWS {
        let w = load(rows[r]);
        for t in 0..T {
            let sum = &mut sums[r][t][HALF];
            *sum = if mask == u16::MAX {
                _mm512_fmadd_ps(w, x[t], *sum)
            } else {
                _mm512_mask3_fmadd_ps(w, x[t], *sum, mask)
            };
        }
    }
}

/// The tree of [`ds4_kernels::dot_f32`]: lane `i` takes lane `i + half`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn fold(low: __m512, high: __m512) -> f32 {
    let sixteen = _mm512_add_ps(low, high);
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), upper);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}
