//! The sums of 32 rows and 16 tokens, and what is added to them for each block.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_NEQ_UQ, _mm512_add_epi32, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512,
    _mm512_mask3_fnmadd_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_store_ps, _mm512_storeu_ps,
};
use std::array::from_fn;

use ds4_kernels::Format;

use super::integers::{Integers, PARTS};
use super::panel::Scales;
use crate::avx512::fold::transpose;
use crate::operands::ROWS;
use crate::panel::LANES;
use crate::tiled::{Columns, TOKENS};

/// `[row][token]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums([[f32; TOKENS]; ROWS]);

impl Sums {
    pub(super) const ZERO: Self = Self([[0.0; TOKENS]; ROWS]);

    /// Adds part `part` of the rows of a block, as `ds4_kernels::block::Block::accumulate`: one fused multiply-add for the weights and one for the
    /// minimums.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(super) fn add(
        &mut self,
        part: usize,
        format: Format,
        scales: &Scales,
        columns: &Columns,
        integers: &Integers,
    ) {
        const COUNT: usize = ROWS / PARTS;
        let (half, lane) = (part * COUNT / LANES, part * COUNT % LANES);
        let of_tokens = load(&columns.scales);
        let sums = &mut self.0[part * COUNT..][..COUNT];
        let scales = (
            &scales.d[part * COUNT..][..COUNT],
            &scales.dmin[part * COUNT..][..COUNT],
        );
        let of_tile = |tile: usize| &integers.0[tile][lane..][..COUNT];
        if format == Format::Q2K {
            let (dots, minimums) = (of_tile(half), of_tile(2 + half));
            for i in 0..COUNT {
                let with_dot = add(load(&sums[i]), scales.0[i], of_tokens, integer(&dots[i]));
                let dmin = _mm512_set1_ps(scales.1[i]);
                let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(dmin, _mm512_setzero_ps());
                let minimums = _mm512_cvtepi32_ps(integer(&minimums[i]));
                let factor = _mm512_mul_ps(dmin, of_tokens);
                let sum = _mm512_mask3_fnmadd_ps(factor, minimums, with_dot, some);
                store(&mut sums[i], sum);
            }
        } else {
            let (lows, highs) = (of_tile(2 * half), of_tile(2 * half + 1));
            for i in 0..COUNT {
                let high = _mm512_slli_epi32::<7>(integer(&highs[i]));
                let dot = _mm512_add_epi32(integer(&lows[i]), high);
                let sum = add(load(&sums[i]), scales.0[i], of_tokens, dot);
                store(&mut sums[i], sum);
            }
        }
    }

    /// `[token][row]`.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(super) fn of_tokens(&self) -> [[f32; ROWS]; TOKENS] {
        let mut out = [[0.0; ROWS]; TOKENS];
        for (half, rows) in self.0.as_chunks::<LANES>().0.iter().enumerate() {
            let columns = transpose(from_fn(|row| _mm512_castps_si512(load(&rows[row]))));
            for (out, column) in out.iter_mut().zip(columns) {
                let out = &mut out[half * LANES..][..LANES];
                // SAFETY: the slice has room for 16 values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(column)) };
            }
        }
        out
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn add(sum: __m512, d: f32, scales: __m512, dot: __m512i) -> __m512 {
    let factor = _mm512_mul_ps(_mm512_set1_ps(d), scales);
    _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(dot), sum)
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn integer(integers: &[i32; TOKENS]) -> __m512i {
    // SAFETY: 64 bytes; rows of `Integers` are aligned to them.
    unsafe { _mm512_load_si512(integers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load(values: &[f32; TOKENS]) -> __m512 {
    // SAFETY: 64 bytes; rows of `Sums` and the scales of `Columns` are aligned to them.
    unsafe { _mm512_load_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store(values: &mut [f32; TOKENS], sum: __m512) {
    // SAFETY: as of `load`.
    unsafe { _mm512_store_ps(values.as_mut_ptr(), sum) };
}
