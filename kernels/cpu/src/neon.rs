//! NEON with the dot-product extension (Graviton 2, Apple M1, Grace and later).
//!
//! Every function here is reached through [`KERNELS`], which is handed out only where the features were detected.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vaddq_f32, vaddvq_s32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32,
    vget_high_s8, vget_high_s16, vget_low_s8, vget_low_s16, vld1q_f32, vld1q_s8, vld1q_s16, vmlal_s16,
    vmovl_s8, vst1q_f32,
};
use std::arch::asm;

use ds4_kernels::block::{Block, GROUP};
use ds4_kernels::{Format, LANES, dequantize_row, widen};

use crate::kernels::{Kernels, by_blocks};
use crate::operands::{Put, ROWS, Rows, Token};

/// Values of a register.
const WIDTH: usize = 4;

/// Only for machines where the dot-product extension was detected.
pub(crate) const KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where the features were detected.
    product: |rows, tokens, put| unsafe { product(rows, tokens, put) },
    beside: None,
    tiled: None,
    plain: |rows, tokens, put| {
        let widen = |bytes: &[u8], out: &mut [f32]| dequantize_row(Format::F16, bytes, out);
        // SAFETY: as above.
        crate::plain::product(rows, tokens, widen, |a, b| unsafe { dot(a, b) }, put);
    },
    // SAFETY: as above.
    dot: |a, b| unsafe { dot(a, b) },
    // SAFETY: as above.
    axpy: |factor, x, y| unsafe { axpy(factor, x, y) },
    quantize: ds4_kernels::quantize,
};

#[target_feature(enable = "neon,dotprod")]
fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if rows.format() != Format::Q8_0 {
        return by_blocks(rows, tokens, |block, codes| block_dot(block, codes), put);
    }
    for (i, token) in tokens.iter().enumerate() {
        token.check(rows.cols(), rows.format().block_len());
        let mut out = [0.0; ROWS];
        for (row, out) in out[..rows.count()].iter_mut().enumerate() {
            *out = q8_0(rows.row(row), token);
        }
        put(i, &out);
    }
}

/// A `Q8_0` row: per block 32 exact products, then one fused multiply-add.
#[target_feature(enable = "neon,dotprod")]
#[allow(clippy::cast_precision_loss)] // at most 32 * 127 * 128: exact
fn q8_0(row: &[u8], token: &Token<'_>) -> f32 {
    let blocks = row
        .as_chunks::<34>()
        .0
        .iter()
        .zip(token.codes.as_chunks::<32>().0);
    let mut total = 0.0f32;
    for ((block, codes), scale) in blocks.zip(token.scales) {
        let d = widen(u16::from_le_bytes([block[0], block[1]]));
        // SAFETY: 32 bytes of each are there; loads need no alignment.
        let dot = unsafe {
            let weights = block.as_ptr().add(2).cast();
            let low = add_products(vdupq_n_s32(0), vld1q_s8(weights), vld1q_s8(codes.as_ptr()));
            add_products(low, vld1q_s8(weights.add(16)), vld1q_s8(codes.as_ptr().add(16)))
        };
        total = (d * scale).mul_add(vaddvq_s32(dot) as f32, total);
    }
    total
}

/// Adds the products of four bytes to each lane. (The intrinsic is not stable yet.)
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers alone, of an extension that this function enables.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The integers of [`Block::dot`].
#[target_feature(enable = "neon,dotprod")]
fn block_dot(block: &Block, codes: &[i8]) -> (i32, i32) {
    let (mut dot, mut minimums) = (vdupq_n_s32(0), 0);
    let groups = block
        .weights
        .as_chunks::<GROUP>()
        .0
        .iter()
        .zip(codes.as_chunks::<GROUP>().0);
    for ((weights, codes), minimum) in groups.zip(&block.minimums) {
        // SAFETY: 16 bytes and 16 words are there; loads need no alignment.
        let (x, low, high) = unsafe {
            (
                vld1q_s8(codes.as_ptr()),
                vld1q_s16(weights.as_ptr()),
                vld1q_s16(weights.as_ptr().add(8)),
            )
        };
        let (x_low, x_high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
        dot = vmlal_s16(dot, vget_low_s16(low), vget_low_s16(x_low));
        dot = vmlal_s16(dot, vget_high_s16(low), vget_high_s16(x_low));
        dot = vmlal_s16(dot, vget_low_s16(high), vget_low_s16(x_high));
        dot = vmlal_s16(dot, vget_high_s16(high), vget_high_s16(x_high));
        if block.dmin != 0.0 {
            let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
            minimums += i32::from(*minimum) * sum;
        }
    }
    (vaddvq_s32(dot), minimums)
}

/// The 32 lanes of [`ds4_kernels::dot_f32`] in eight registers, folded in the same tree.
#[target_feature(enable = "neon,dotprod")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes: [float32x4_t; LANES / WIDTH] = [vdupq_n_f32(0.0); LANES / WIDTH];
    let (a_full, a_rest) = a.as_chunks::<LANES>();
    let (b_full, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_full.iter().zip(b_full) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = vfmaq_f32(*lane, load(a, i), load(b, i));
        }
    }
    let mut all = [0.0f32; LANES];
    for (i, lane) in lanes.into_iter().enumerate() {
        store(&mut all, i, lane);
    }
    let rest = all.iter_mut().zip(a_rest.iter().zip(b_rest));
    rest.for_each(|(lane, (x, y))| *lane = x.mul_add(*y, *lane));
    fold(&mut all)
}

#[target_feature(enable = "neon,dotprod")]
fn fold(lanes: &mut [f32; LANES]) -> f32 {
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

#[target_feature(enable = "neon,dotprod")]
fn axpy(factor: f32, x: &[f32], y: &mut [f32]) {
    let (x_full, x_rest) = x.as_chunks::<WIDTH>();
    let (y_full, y_rest) = y.as_chunks_mut::<WIDTH>();
    for (x, y) in x_full.iter().zip(y_full) {
        let sum = vfmaq_f32(load(y, 0), vdupq_n_f32(factor), load(x, 0));
        store(y, 0, sum);
    }
    let rest = y_rest.iter_mut().zip(x_rest);
    rest.for_each(|(y, x)| *y = factor.mul_add(*x, *y));
}

/// Register `i` of `values`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(values: &[f32], i: usize) -> float32x4_t {
    let four = &values[i * WIDTH..(i + 1) * WIDTH];
    // SAFETY: the slice was just taken.
    unsafe { vld1q_f32(four.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn store(values: &mut [f32], i: usize, register: float32x4_t) {
    let four = &mut values[i * WIDTH..(i + 1) * WIDTH];
    // SAFETY: the slice was just taken.
    unsafe { vst1q_f32(four.as_mut_ptr(), register) };
}
