//! Activations to bytes, as [`ds4_kernels::quantize`] defines it.

use std::arch::aarch64::*;

use ds4_kernels::block::GROUP;
use ds4_kernels::{CodesMut, OFFSET, Q8_BLOCK};

/// Values of a register.
const WIDTH: usize = 4;

#[target_feature(enable = "neon")]
pub(super) fn quantize(values: &[f32], block: usize, out: CodesMut<'_>) {
    let CodesMut {
        codes,
        scales,
        sums,
        offsets,
    } = out;
    assert_eq!(
        (values.len(), values.len() / block),
        (codes.len(), scales.len()),
        "codes and scales"
    );
    let parts = values.chunks_exact(block).zip(codes.chunks_exact_mut(block));
    let parts = parts.zip(scales).zip(sums.chunks_exact_mut(block / GROUP));
    for (((values, codes), scale), sums) in parts {
        let inverse;
        (*scale, inverse) = if block == Q8_BLOCK {
            q8_scale(values)
        } else {
            q8_k_scale(values)
        };
        let groups = values
            .as_chunks::<GROUP>()
            .0
            .iter()
            .zip(codes.as_chunks_mut::<GROUP>().0);
        for ((values, codes), sum) in groups.zip(sums) {
            *sum = group(values, inverse, codes);
        }
    }
    for (out, pair) in offsets.iter_mut().zip(sums.as_chunks::<2>().0) {
        *out = -OFFSET * (i32::from(pair[0]) + i32::from(pair[1]));
    }
}

/// The step of a block of 32, and its inverse.
#[inline]
#[target_feature(enable = "neon")]
fn q8_scale(block: &[f32]) -> (f32, f32) {
    let scale = largest(block) / 127.0;
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// The step of a block of 256, and its inverse: the first of several equal magnitudes gives the sign.
#[inline]
#[target_feature(enable = "neon")]
fn q8_k_scale(block: &[f32]) -> (f32, f32) {
    let most = largest(block);
    if most == 0.0 {
        return (0.0, 0.0);
    }
    let first = block.iter().find(|x| x.abs() == most);
    let inverse = -127.0 / first.unwrap_or(&most);
    (1.0 / inverse, inverse)
}

/// The largest magnitude; what is no number does not count.
#[inline]
#[target_feature(enable = "neon")]
fn largest(block: &[f32]) -> f32 {
    let mut most = [vdupq_n_f32(0.0); 4];
    for values in block.as_chunks::<GROUP>().0 {
        for (i, most) in most.iter_mut().enumerate() {
            let x = vabsq_f32(load(values, i));
            *most = vbslq_f32(vcgtq_f32(x, *most), x, *most);
        }
    }
    let [a, b, c, d] = most;
    vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d)))
}

/// Nearest codes, ties to even, -127 to 127, 0 for what is no number; and their sum.
#[inline]
#[target_feature(enable = "neon")]
fn group(values: &[f32; GROUP], inverse: f32, codes: &mut [i8; GROUP]) -> i16 {
    let code = |i: usize| {
        let x = vmulq_n_f32(load(values, i), inverse);
        vcvtnq_s32_f32(vminq_f32(vmaxq_f32(x, vdupq_n_f32(-127.0)), vdupq_n_f32(127.0)))
    };
    let [low, high] = [0, 2].map(|i| vmovn_high_s32(vmovn_s32(code(i)), code(i + 1)));
    // SAFETY: the array has room for 16 bytes.
    unsafe { vst1q_s8(codes.as_mut_ptr(), vmovn_high_s16(vmovn_s16(low), high)) };
    vaddvq_s16(vaddq_s16(low, high))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; GROUP], i: usize) -> float32x4_t {
    let four = &values[i * WIDTH..(i + 1) * WIDTH];
    // SAFETY: the slice was just taken.
    unsafe { vld1q_f32(four.as_ptr()) }
}
