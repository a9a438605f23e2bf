//! `f32` products in the 32 lanes of [`ds4_kernels::dot_f32`]: two registers a sum.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_prefetch,
    _mm_shuffle_ps, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps256_ps128, _mm256_extractf128_ps,
    _mm256_loadu_si256, _mm256_maskz_loadu_epi16, _mm512_add_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_cvtph_ps, _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask3_fmadd_ps,
    _mm512_maskz_loadu_ps, _mm512_setzero_ps,
};

use ds4_kernels::{Format, LANES};

use super::floats;
use crate::operands::{Put, ROWS, Rows};
use crate::plain::with_values;

/// Rows times tokens of a tile: 12 sums of two registers each.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 3;
/// Lanes of a register: half of those of a sum.
const WIDTH: usize = LANES / 2;

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[&[f32]], put: Put<'_>) {
    if floats::takes(rows, tokens.len()) {
        return floats::product(rows, tokens, put);
    }
    let bytes: [&[u8]; ROWS] = std::array::from_fn(|i| rows.row(i));
    match rows.format() {
        Format::F16 => tiles::<HALVES>(&bytes, rows.count(), tokens, put),
        Format::F32 => tiles::<FLOATS>(&bytes, rows.count(), tokens, put),
        _ => with_values(
            rows,
            |_, _| unreachable!("halves are read where they lie"),
            |values| {
                let last = values.len() - 1;
                let bytes: [&[u8]; ROWS] = std::array::from_fn(|i| bytes_of(values[i.min(last)]));
                tiles::<FLOATS>(&bytes, rows.count(), tokens, put);
            },
        ),
    }
}

/// Bytes per value of weights that are read where they lie.
const HALVES: usize = 2;
const FLOATS: usize = 4;

/// The bytes of floats.
fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of a float is initialised, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// All tokens with `count` rows of `SIZE` bytes a value.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn tiles<const SIZE: usize>(rows: &[&[u8]; ROWS], count: usize, tokens: &[&[f32]], put: Put<'_>) {
    let passes = tokens.len().div_ceil(TILE_TOKENS);
    for (i, tokens) in tokens.chunks(TILE_TOKENS).enumerate() {
        let share = Share::of(i, passes);
        let mut out = [[0.0; ROWS]; TILE_TOKENS];
        for (at, rows) in rows.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
            let at = at * TILE_ROWS;
            if at >= count {
                break;
            }
            match *tokens {
                [a, b, c] => tile::<SIZE, 3>(rows, &[a, b, c], at, share, &mut out),
                [a, b] => tile::<SIZE, 2>(rows, &[a, b], at, share, &mut out),
                [a] => tile::<SIZE, 1>(rows, &[a], at, share, &mut out),
                _ => unreachable!("chunks of one to three"),
            }
        }
        for (j, values) in out[..tokens.len()].iter().enumerate() {
            put(i * TILE_TOKENS + j, values);
        }
    }
}

/// What a pass asks of memory meanwhile: each of several over the same rows a share of the rows that come next, so that memory works while they
/// compute. A single pass is as fast as memory and asks for nothing.
#[derive(Clone, Copy)]
struct Share {
    /// In steps of [`LANES`] values.
    first: usize,
    every: usize,
}

impl Share {
    const fn of(pass: usize, passes: usize) -> Self {
        Self {
            first: if passes == 1 { usize::MAX } else { pass },
            every: passes,
        }
    }
}

/// Asks memory for byte `at` of rows as far behind these as a task takes; they need not be there.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn ask(rows: &[&[u8]; TILE_ROWS], at: usize) {
    for row in rows {
        let next = row.as_ptr().wrapping_add(ROWS * row.len() + at);
        _mm_prefetch::<_MM_HINT_T1>(next.cast());
    }
}

/// Products of four rows with `T` tokens, to lanes `at` on of `out`.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn tile<const SIZE: usize, const T: usize>(
    rows: &[&[u8]; TILE_ROWS],
    tokens: &[&[f32]; T],
    at: usize,
    share: Share,
    out: &mut [[f32; ROWS]; TILE_TOKENS],
) {
    let cols = tokens[0].len();
    assert!(tokens.iter().all(|x| x.len() == cols) && rows.iter().all(|row| row.len() == SIZE * cols));
    let mut sums = [[[_mm512_setzero_ps(); 2]; T]; TILE_ROWS];
    let whole = cols / LANES * LANES;
    let mut until = share.first;
    for k in (0..whole).step_by(LANES) {
        if until == 0 {
            ask(rows, SIZE * k);
            until = share.every;
        }
        until -= 1;
        // SAFETY: 32 values from `k` on are inside all of them.
        unsafe {
            step::<SIZE, T, 0>(rows, tokens, k, &mut sums, u16::MAX);
            step::<SIZE, T, 1>(rows, tokens, k + WIDTH, &mut sums, u16::MAX);
        }
    }
    let (first, second) = ((cols - whole).min(WIDTH), (cols - whole).saturating_sub(WIDTH));
    if first > 0 {
        // SAFETY: masked to the values that there are.
        unsafe { step::<SIZE, T, 0>(rows, tokens, whole, &mut sums, u16::MAX >> (WIDTH - first)) };
    }
    if second > 0 {
        // SAFETY: as above.
        unsafe {
            step::<SIZE, T, 1>(
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
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn step<const SIZE: usize, const T: usize, const HALF: usize>(
    rows: &[&[u8]; TILE_ROWS],
    tokens: &[&[f32]; T],
    k: usize,
    sums: &mut [[[__m512; 2]; T]; TILE_ROWS],
    mask: __mmask16,
) {
    let mut x = [_mm512_setzero_ps(); T];
    for t in 0..T {
        // SAFETY: as the caller promised.
        x[t] = unsafe { floats(tokens[t].as_ptr().add(k), mask) };
    }
    for r in 0..TILE_ROWS {
        // SAFETY: as the caller promised.
        let w = unsafe {
            let start = rows[r].as_ptr().add(SIZE * k);
            if SIZE == HALVES {
                halves(start, mask)
            } else {
                floats(start.cast(), mask)
            }
        };
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

/// # Safety
/// The values that `mask` names are there.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn floats(start: *const f32, mask: __mmask16) -> __m512 {
    // SAFETY: as the caller promised; loads need no alignment.
    unsafe {
        match mask {
            u16::MAX => _mm512_loadu_ps(start),
            _ => _mm512_maskz_loadu_ps(mask, start),
        }
    }
}

/// # Safety
/// The values that `mask` names are there.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn halves(start: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: as the caller promised; loads need no alignment.
    _mm512_cvtph_ps(unsafe {
        match mask {
            u16::MAX => _mm256_loadu_si256(start.cast()),
            _ => _mm256_maskz_loadu_epi16(mask, start.cast()),
        }
    })
}

/// The tree of [`ds4_kernels::dot_f32`]: lane `i` takes lane `i + half`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn fold(low: __m512, high: __m512) -> f32 {
    let sixteen = _mm512_add_ps(low, high);
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), upper);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}
