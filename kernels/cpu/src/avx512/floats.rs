//! Rows times many `f32` tokens, in the 32 lanes of [`ds4_kernels::dot_f32`]: each half of the lanes by itself, so that more sums fit the registers.
//!
//! The rows become floats once for all tokens, in the order in which tiles read them: a conversion takes two turns of the ports that multiply.

use std::arch::x86_64::{
    __m512, _MM_HINT_T1, _mm_prefetch, _mm_setzero_ps, _mm_storeu_ps, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_store_ps,
};
use std::cell::RefCell;

use ds4_kernels::{Format, LANES};

use crate::lanes::{Lanes, fold4};
use crate::operands::{Put, ROWS, Rows};

/// Rows times tokens of a tile: 24 sums.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 6;
/// Tiles of all rows.
const GROUPS: usize = ROWS / TILE_ROWS;
/// Fewer tokens are multiplied with rows where they lie.
pub(super) const LEAST: usize = 12;
/// Steps of [`LANES`] values that tiles go through before the next rows' turn: 24 KiB of the tokens of a tile, half of a cache of 48 KiB.
const SLICE: usize = 32;
/// Values of a register: half of the lanes.
const WIDTH: usize = LANES / 2;

/// Bytes that memory brings at once.
const LINE: usize = 64;

/// A register in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Register([f32; WIDTH]);

const ZERO: Register = Register([0.0; WIDTH]);

/// The sums of a tile in half of the lanes: `[row][token]`.
type Sums = [[Register; TILE_TOKENS]; TILE_ROWS];
const NO_SUMS: Sums = [[ZERO; TILE_TOKENS]; TILE_ROWS];

/// What a thread keeps from product to product.
struct Scratch {
    /// Rows as floats.
    weights: Vec<Register>,
    /// Of all rows, `[half of the lanes][tile of rows]`.
    sums: [[Sums; GROUPS]; 2],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> =
        RefCell::new(Box::new(Scratch { weights: Vec::new(), sums: [[NO_SUMS; GROUPS]; 2] }));
}

/// Whether this is the way to multiply such rows with so many tokens.
pub(super) fn takes(rows: &Rows<'_>, tokens: usize) -> bool {
    tokens >= LEAST && rows.cols().is_multiple_of(LANES) && matches!(rows.format(), Format::F16 | Format::F32)
}

/// The products of rows that [`takes`] accepts with all tokens.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[&[f32]], put: Put<'_>) {
    assert!(tokens.iter().all(|x| x.len() == rows.cols()));
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { weights, sums } = &mut **scratch;
        let needed = rows.cols() / WIDTH * ROWS;
        weights.resize(weights.len().max(needed), ZERO);
        let weights = &mut weights[..needed];
        unpack(rows, weights);
        let tiles = tokens.len().div_ceil(TILE_TOKENS);
        for (i, some) in tokens.chunks(TILE_TOKENS).enumerate() {
            ask_for_share(rows, i, tiles);
            // The last token stands in for those that are missing.
            let of_tile = std::array::from_fn(|t| some[t.min(some.len() - 1)]);
            let out = of_tokens(weights, rows.count().div_ceil(TILE_ROWS), &of_tile, sums);
            let put = |(t, values): (usize, &[f32; ROWS])| put(i * TILE_TOKENS + t, values);
            out[..some.len()].iter().enumerate().for_each(put);
        }
    });
}

/// Asks memory for share `i` of `count` of the rows that come next, which need not be there.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn ask_for_share(rows: &Rows<'_>, i: usize, count: usize) {
    let (start, bytes) = (rows.row(0).as_ptr(), ROWS * rows.row(0).len());
    for at in (bytes * i / count..bytes * (i + 1) / count).step_by(LINE) {
        _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(bytes + at).cast());
    }
}

/// The rows as floats: `[slice][half of the lanes][tile of rows][step][row]`.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn unpack(rows: &Rows<'_>, out: &mut [Register]) {
    for (slice, out) in out.chunks_mut(2 * ROWS * SLICE).enumerate() {
        let steps = out.len() / (2 * ROWS);
        // Tiles read whole; the last row stands in for those that are missing.
        for row in 0..rows.count().next_multiple_of(TILE_ROWS) {
            for half in 0..2 {
                let tile = half * GROUPS + row / TILE_ROWS;
                let out = out[tile * steps * TILE_ROWS..][..steps * TILE_ROWS].as_chunks_mut::<TILE_ROWS>();
                let (from, bytes) = (slice * SLICE * LANES + half * WIDTH, rows.row(row));
                for (step, out) in out.0.iter_mut().enumerate() {
                    let at = from + step * LANES;
                    let values = match rows.format() {
                        Format::F16 => halves(&bytes[2 * at..][..2 * WIDTH]),
                        _ => floats(&bytes[4 * at..][..4 * WIDTH]),
                    };
                    store(&mut out[row % TILE_ROWS], values);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn halves(bytes: &[u8]) -> __m512 {
    assert_eq!(bytes.len(), 2 * WIDTH);
    // SAFETY: 32 bytes, as just asserted; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn floats(bytes: &[u8]) -> __m512 {
    assert_eq!(bytes.len(), 4 * WIDTH);
    // SAFETY: 64 bytes, as just asserted; the load needs no alignment.
    unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
}

/// The products of `groups` tiles of rows with the tokens of a tile.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_tokens(
    weights: &[Register],
    groups: usize,
    tokens: &[&[f32]; TILE_TOKENS],
    sums: &mut [[Sums; GROUPS]; 2],
) -> [[f32; ROWS]; TILE_TOKENS] {
    for (slice, weights) in weights.chunks(2 * ROWS * SLICE).enumerate() {
        let halves = weights.chunks_exact(weights.len() / 2).zip(&mut *sums);
        for (half, (weights, sums)) in halves.enumerate() {
            let from = tokens.map(|x| &x[slice * SLICE * LANES + half * WIDTH..]);
            let tiles = weights.chunks_exact(weights.len() / GROUPS).zip(sums);
            for (weights, sums) in tiles.take(groups) {
                tile(weights.as_chunks().0, &from, slice == 0, sums);
            }
        }
    }
    let mut out = [[0.0; ROWS]; TILE_TOKENS];
    let [low, high] = &*sums;
    for (group, (low, high)) in low.iter().zip(high).take(groups).enumerate() {
        for (t, out) in out.iter_mut().enumerate() {
            let out = &mut out[group * TILE_ROWS..][..TILE_ROWS];
            // SAFETY: the instructions are enabled here, and four values are what is written.
            unsafe {
                let mut four = [_mm_setzero_ps(); TILE_ROWS];
                for row in 0..TILE_ROWS {
                    four[row] = _mm512_add_ps(load(&low[row][t]), load(&high[row][t])).quarter();
                }
                _mm_storeu_ps(out.as_mut_ptr(), fold4(four[0], four[1], four[2], four[3]));
            }
        }
    }
    out
}

/// Adds the products of a slice, one step of all rows after the other, with every second register of the tokens; of the first slice to nothing.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn tile(steps: &[[Register; TILE_ROWS]], tokens: &[&[f32]; TILE_TOKENS], first: bool, out: &mut Sums) {
    let needed = (steps.len() - 1) * LANES + WIDTH;
    assert!(tokens.iter().all(|x| x.len() >= needed));
    let mut sums = [[_mm512_setzero_ps(); TILE_TOKENS]; TILE_ROWS];
    if !first {
        for (sums, out) in sums.as_flattened_mut().iter_mut().zip(out.as_flattened()) {
            *sums = load(out);
        }
    }
    for (step, rows) in steps.iter().enumerate() {
        let mut weights = [_mm512_setzero_ps(); TILE_ROWS];
        (0..TILE_ROWS).for_each(|row| weights[row] = load(&rows[row]));
        for t in 0..TILE_TOKENS {
            // SAFETY: the tokens reach to the last step, as asserted; the load needs no alignment.
            let x = unsafe { _mm512_loadu_ps(tokens[t].as_ptr().add(step * LANES)) };
            for row in 0..TILE_ROWS {
                sums[row][t] = _mm512_fmadd_ps(weights[row], x, sums[row][t]);
            }
        }
    }
    for (sums, out) in sums.as_flattened().iter().zip(out.as_flattened_mut()) {
        store(out, *sums);
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load(register: &Register) -> __m512 {
    // SAFETY: 64 bytes, aligned to as many.
    unsafe { _mm512_load_ps(register.0.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store(register: &mut Register, values: __m512) {
    // SAFETY: as of `load`.
    unsafe { _mm512_store_ps(register.0.as_mut_ptr(), values) }
}
