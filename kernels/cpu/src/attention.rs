//! The two products of attention in tiles: several heads against several rows, all sums in registers.

use std::arch::x86_64::{_mm_setzero_ps, _mm_storeu_ps};

use ds4_kernels::LANES;
use ds4_kernels::ops::attention::{self, Heads};

use crate::lanes::{Lanes, fold4};

/// Heads of a tile.
const HEADS: usize = 4;
/// Rows of a score tile: so many sums are folded together.
const ROWS: usize = 4;
/// Rows whose share of a blend is added before the next values' turn: with 64 values each they fill half of a 32 KiB cache.
const RUN: usize = 64;

/// As [`attention::scores`].
///
/// # Safety
/// Inlined into a function that enables the instructions of `V`.
#[inline(always)]
pub(crate) unsafe fn scores<V: Lanes>(heads: &Heads<'_>, rows: &[f32], out: &mut [f32]) {
    let (dim, stride) = (heads.dim, heads.stride);
    if !dim.is_multiple_of(LANES) {
        return attention::scores(heads, rows, out);
    }
    let (h, n) = (heads.queries.len() / dim, rows.len() / dim);
    assert!(
        n <= stride && (n == 0 || h == 0 || out.len() >= (h - 1) * stride + n),
        "out has room for every score"
    );
    for row in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - row);
        // A short tile reads its last row again and keeps only what is its own.
        let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &rows[(row + r.min(count - 1)) * dim..][..dim]);
        let mut head = 0;
        while head < h {
            let query = |i: usize| &heads.queries[(head + i) * dim..][..dim];
            let out = &mut out[head * stride + row..];
            // SAFETY: the instructions are enabled where this is inlined; all slices are `dim` long.
            head += unsafe {
                if head + HEADS <= h {
                    tile::<V, HEADS>(std::array::from_fn(query), rows, heads.scale, count, stride, out)
                } else {
                    tile::<V, 1>([query(0)], rows, heads.scale, count, stride, out)
                }
            };
        }
    }
}

/// `H` heads against four rows; writes `count` scores of each head and returns `H`.
///
/// # Safety
/// As [`scores`]; all slices have the same length, a multiple of [`LANES`].
#[inline(always)]
unsafe fn tile<V: Lanes, const H: usize>(
    queries: [&[f32]; H],
    rows: [&[f32]; ROWS],
    scale: f32,
    count: usize,
    stride: usize,
    out: &mut [f32],
) -> usize {
    let groups = LANES / V::WIDTH;
    // SAFETY: as the caller says; every load is within the first `dim` values.
    unsafe {
        // Lanes `g * WIDTH..` of the 32, summed apart and folded as the definition folds them.
        let mut lanes = [[[V::zero(); ROWS]; H]; 4];
        for (g, sums) in lanes.iter_mut().enumerate().take(groups) {
            *sums = products::<V, H>(queries, rows, g * V::WIDTH);
        }
        let mut half = groups / 2;
        while half > 0 {
            for g in 0..half {
                lanes[g] = added(lanes[g], lanes[g + half]);
            }
            half /= 2;
        }
        for (h, sums) in lanes[0].iter().enumerate() {
            let mut four = [_mm_setzero_ps(); ROWS];
            (0..ROWS).for_each(|r| four[r] = sums[r].quarter());
            let mut scores = [0.0f32; ROWS];
            _mm_storeu_ps(scores.as_mut_ptr(), fold4(four[0], four[1], four[2], four[3]));
            let out = &mut out[h * stride..h * stride + count];
            out.iter_mut()
                .zip(scores)
                .for_each(|(out, score)| *out = score * scale);
        }
    }
    H
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn added<V: Lanes, const H: usize>(a: [[V; ROWS]; H], b: [[V; ROWS]; H]) -> [[V; ROWS]; H] {
    // SAFETY: as the caller says.
    std::array::from_fn(|h| std::array::from_fn(|r| unsafe { a[h][r].add(b[h][r]) }))
}

/// Sums of products of every 32nd run of `WIDTH` values, from `from` on.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn products<V: Lanes, const H: usize>(
    queries: [&[f32]; H],
    rows: [&[f32]; ROWS],
    from: usize,
) -> [[V; ROWS]; H] {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[V::zero(); ROWS]; H];
        for at in (from..rows[0].len()).step_by(LANES) {
            let row: [V; ROWS] = std::array::from_fn(|r| V::load(rows[r].as_ptr().add(at)));
            for h in 0..H {
                let query = V::load(queries[h].as_ptr().add(at));
                for r in 0..ROWS {
                    sums[h][r] = query.fma(row[r], sums[h][r]);
                }
            }
        }
        sums
    }
}

/// As [`attention::blend`]; `D` registers of values at a time.
///
/// # Safety
/// Inlined into a function that enables the instructions of `V`.
#[inline(always)]
pub(crate) unsafe fn blend<V: Lanes, const D: usize>(
    weights: &[f32],
    stride: usize,
    rows: &[f32],
    dim: usize,
    out: &mut [f32],
) {
    let (h, n) = (out.len() / dim, rows.len() / dim);
    assert!(
        n <= stride && (n == 0 || h == 0 || weights.len() >= (h - 1) * stride + n),
        "a weight for every row"
    );
    for row in (0..n).step_by(RUN) {
        let count = RUN.min(n - row);
        let (rows, weights) = (&rows[row * dim..(row + count) * dim], &weights[row..]);
        let mut at = 0;
        while at < dim {
            let mut head = 0;
            let mut step = 1;
            while head < h {
                let (weights, out) = (&weights[head * stride..], &mut out[head * dim..]);
                // SAFETY: the instructions are enabled where this is inlined; the asserted lengths and `at` keep every access in bounds.
                (head, step) = unsafe {
                    match (head + HEADS <= h, dim - at) {
                        (true, left) if left >= D * V::WIDTH => (
                            head + HEADS,
                            blend_tile::<V, HEADS, D>(weights, stride, rows, dim, at, out),
                        ),
                        (false, left) if left >= D * V::WIDTH => (
                            head + 1,
                            blend_tile::<V, 1, D>(weights, stride, rows, dim, at, out),
                        ),
                        (_, left) if left >= V::WIDTH => (
                            head + 1,
                            blend_tile::<V, 1, 1>(weights, stride, rows, dim, at, out),
                        ),
                        _ => (head + 1, blend_one(weights, rows, dim, at, out)),
                    }
                };
            }
            at += step;
        }
    }
}

/// `H` heads, `D` registers of values: adds all rows; returns the number of values.
///
/// # Safety
/// As [`blend`]; `at + D * WIDTH <= dim`, `weights` reach `H` heads, `out` too.
#[inline(always)]
unsafe fn blend_tile<V: Lanes, const H: usize, const D: usize>(
    weights: &[f32],
    stride: usize,
    rows: &[f32],
    dim: usize,
    at: usize,
    out: &mut [f32],
) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[V::zero(); D]; H];
        for h in 0..H {
            for d in 0..D {
                sums[h][d] = V::load(out[h * dim + at + d * V::WIDTH..].as_ptr());
            }
        }
        for (r, row) in rows.chunks_exact(dim).enumerate() {
            let row: [V; D] = std::array::from_fn(|d| V::load(row.as_ptr().add(at + d * V::WIDTH)));
            for (h, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(*weights.get_unchecked(h * stride + r));
                for (sum, row) in sums.iter_mut().zip(row) {
                    *sum = weight.fma(row, *sum);
                }
            }
        }
        for h in 0..H {
            for d in 0..D {
                sums[h][d].store(out[h * dim + at + d * V::WIDTH..].as_mut_ptr());
            }
        }
    }
    D * V::WIDTH
}

/// One head, one value.
#[inline(always)]
fn blend_one(weights: &[f32], rows: &[f32], dim: usize, at: usize, out: &mut [f32]) -> usize {
    for (row, weight) in rows.chunks_exact(dim).zip(weights) {
        out[at] = weight.mul_add(row[at], out[at]);
    }
    1
}
