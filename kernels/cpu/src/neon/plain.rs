//! `f32` products in the 32 lanes of [`ds4_kernels::dot_f32`]: eight registers a sum.

use std::arch::aarch64::*;
use std::array::from_fn;

use ds4_kernels::{Format, LANES, dequantize_row};

use super::bytes::widen;
use crate::operands::{Put, ROWS, Rows};
use crate::plain::with_values;

/// Values of a register.
const WIDTH: usize = 4;
/// Registers of a sum.
const REGISTERS: usize = LANES / WIDTH;
/// Rows and tokens of a tile: 16 registers of sums.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 4;
/// Values that a tile takes at a time, once for each register of a sum: of eight rows and tokens 16 KiB, which stay in the nearest cache.
const SLICE: usize = 512;
/// Rows that share what is loaded of a single token.
const TWO: usize = 2;

/// The lanes of a sum.
type Lanes = [f32; LANES];

#[target_feature(enable = "neon")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[&[f32]], put: Put<'_>) {
    match (rows.format(), tokens) {
        (Format::F16, [x]) => put(0, &one::<2>(rows, x)),
        (Format::F32, [x]) => put(0, &one::<4>(rows, x)),
        _ => with_values(
            rows,
            |bytes, out| widen_halves(bytes, out),
            |values| tiles(values, tokens, put),
        ),
    }
}

/// Halves to floats.
#[target_feature(enable = "neon")]
fn widen_halves(bytes: &[u8], out: &mut [f32]) {
    let (halves, rest) = bytes.as_chunks::<{ 2 * WIDTH }>();
    let (wide, out_rest) = out.as_chunks_mut::<WIDTH>();
    for (halves, out) in halves.iter().zip(wide) {
        store(out, 0, load_bytes::<2>(halves, 0));
    }
    dequantize_row(Format::F16, rest, out_rest);
}

/// One token with rows of `SIZE` bytes a value, from where they lie.
#[target_feature(enable = "neon")]
fn one<const SIZE: usize>(rows: &Rows<'_>, x: &[f32]) -> [f32; ROWS] {
    let (mut out, format) = ([0.0; ROWS], rows.format());
    for (i, out) in out
        .as_chunks_mut::<TWO>()
        .0
        .iter_mut()
        .enumerate()
        .take(rows.count().div_ceil(TWO))
    {
        let rows = from_fn(|row| rows.row(TWO * i + row));
        *out = two::<SIZE>(&rows, x, format);
    }
    out
}

#[target_feature(enable = "neon")]
fn two<const SIZE: usize>(rows: &[&[u8]; TWO], x: &[f32], format: Format) -> [f32; TWO] {
    let (x_full, x_rest) = x.as_chunks::<LANES>();
    let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; TWO];
    for (at, x) in x_full.iter().enumerate() {
        for i in 0..REGISTERS {
            let x = load(x, i);
            for (sums, row) in sums.iter_mut().zip(rows) {
                let weights = &row[at * LANES * SIZE..][..LANES * SIZE];
                sums[i] = vfmaq_f32(sums[i], load_bytes::<SIZE>(weights, i), x);
            }
        }
    }
    from_fn(|row| {
        let (mut lanes, mut weights) = ([0.0; LANES], [0.0; LANES]);
        for (i, sum) in sums[row].iter().enumerate() {
            store(&mut lanes, i, *sum);
        }
        let rest = &mut weights[..x_rest.len()];
        dequantize_row(format, &rows[row][x_full.len() * LANES * SIZE..], rest);
        add_rest(&mut lanes, rest, x_rest);
        fold(&mut lanes)
    })
}

/// All tokens with the values of the rows.
#[target_feature(enable = "neon")]
fn tiles(rows: &[&[f32]], tokens: &[&[f32]], put: Put<'_>) {
    for (i, tokens) in tokens.chunks(TILE_TOKENS).enumerate() {
        let mut out = [[0.0; ROWS]; TILE_TOKENS];
        for first in (0..rows.len()).step_by(TILE_ROWS) {
            let rows = from_fn(|row| rows[(first + row).min(rows.len() - 1)]);
            match *tokens {
                [a, b, c, d] => tile(&rows, &[a, b, c, d], first, &mut out),
                [a, b, c] => tile(&rows, &[a, b, c], first, &mut out),
                [a, b] => tile(&rows, &[a, b], first, &mut out),
                [a] => tile(&rows, &[a], first, &mut out),
                _ => unreachable!("chunks of one to four"),
            }
        }
        for (j, values) in out[..tokens.len()].iter().enumerate() {
            put(i * TILE_TOKENS + j, values);
        }
    }
}

/// Products of four rows with `T` tokens, to rows `first` on of `out`.
#[target_feature(enable = "neon")]
fn tile<const T: usize>(
    rows: &[&[f32]; TILE_ROWS],
    tokens: &[&[f32]; T],
    first: usize,
    out: &mut [[f32; ROWS]; TILE_TOKENS],
) {
    let cols = tokens[0].len();
    assert!(tokens.iter().chain(rows).all(|values| values.len() == cols));
    let (full, mut sums) = (cols / LANES * LANES, [[[0.0; LANES]; TILE_ROWS]; T]);
    for from in (0..full).step_by(SLICE) {
        let to = full.min(from + SLICE);
        for register in 0..REGISTERS {
            // SAFETY: all slices have `to` values.
            unsafe { add_slice(rows, tokens, from..to, register, &mut sums) };
        }
    }
    for (out, (sums, x)) in out.iter_mut().zip(sums.iter_mut().zip(tokens)) {
        for (i, (lanes, row)) in sums.iter_mut().zip(rows).enumerate() {
            add_rest(lanes, &row[full..], &x[full..]);
            out[first + i] = fold(lanes);
        }
    }
}

/// Adds every 32nd run of four values of `slice`, from four times `register` on.
///
/// # Safety
/// All rows and tokens have the values.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_slice<const T: usize>(
    rows: &[&[f32]; TILE_ROWS],
    tokens: &[&[f32]; T],
    slice: std::ops::Range<usize>,
    register: usize,
    out: &mut [[Lanes; TILE_ROWS]; T],
) {
    let mut sums: [[float32x4_t; TILE_ROWS]; T] = from_fn(|t| from_fn(|row| load(&out[t][row], register)));
    for at in (slice.start + WIDTH * register..slice.end).step_by(LANES) {
        // SAFETY: as the caller promised: slices are whole steps of 32 values.
        let weights = rows.map(|row| unsafe { vld1q_f32(row.as_ptr().add(at)) });
        for (sums, x) in sums.iter_mut().zip(tokens) {
            // SAFETY: as above.
            let x = unsafe { vld1q_f32(x.as_ptr().add(at)) };
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = vfmaq_f32(*sum, weights, x);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(&sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            store(out, register, *sum);
        }
    }
}

#[target_feature(enable = "neon")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [vdupq_n_f32(0.0); REGISTERS];
    let (a_full, a_rest) = a.as_chunks::<LANES>();
    let (b_full, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_full.iter().zip(b_full) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = vfmaq_f32(*sum, load(a, i), load(b, i));
        }
    }
    let mut lanes = [0.0; LANES];
    for (i, sum) in sums.into_iter().enumerate() {
        store(&mut lanes, i, sum);
    }
    add_rest(&mut lanes, a_rest, b_rest);
    fold(&mut lanes)
}

/// A last, partial step: those lanes alone take another product.
fn add_rest(lanes: &mut Lanes, a: &[f32], b: &[f32]) {
    let rest = lanes.iter_mut().zip(a.iter().zip(b));
    rest.for_each(|(lane, (x, y))| *lane = x.mul_add(*y, *lane));
}

#[target_feature(enable = "neon")]
fn fold(lanes: &mut Lanes) -> f32 {
    let mut half = LANES / 2;
    while half >= WIDTH {
        for i in 0..half / WIDTH {
            let sum = vaddq_f32(load(lanes, i), load(lanes, i + half / WIDTH));
            store(lanes, i, sum);
        }
        half /= 2;
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

#[target_feature(enable = "neon")]
pub(super) fn axpy(factor: f32, x: &[f32], y: &mut [f32]) {
    let (x_full, x_rest) = x.as_chunks::<WIDTH>();
    let (y_full, y_rest) = y.as_chunks_mut::<WIDTH>();
    for (x, y) in x_full.iter().zip(y_full) {
        let sum = vfmaq_f32(load(y, 0), vdupq_n_f32(factor), load(x, 0));
        store(y, 0, sum);
    }
    let rest = y_rest.iter_mut().zip(x_rest);
    rest.for_each(|(y, x)| *y = factor.mul_add(*x, *y));
}

/// Register `i` of values of `SIZE` bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load_bytes<const SIZE: usize>(bytes: &[u8], i: usize) -> float32x4_t {
    let four = &bytes[i * WIDTH * SIZE..(i + 1) * WIDTH * SIZE];
    // SAFETY: the slice was just taken; the loads need no alignment.
    unsafe {
        if SIZE == 2 {
            widen(vld1_u16(four.as_ptr().cast()))
        } else {
            vreinterpretq_f32_u8(vld1q_u8(four.as_ptr()))
        }
    }
}

/// Register `i` of `values`.
#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32], i: usize) -> float32x4_t {
    let four = &values[i * WIDTH..(i + 1) * WIDTH];
    // SAFETY: the slice was just taken.
    unsafe { vld1q_f32(four.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(values: &mut [f32], i: usize, register: float32x4_t) {
    let four = &mut values[i * WIDTH..(i + 1) * WIDTH];
    // SAFETY: the slice was just taken.
    unsafe { vst1q_f32(four.as_mut_ptr(), register) };
}
