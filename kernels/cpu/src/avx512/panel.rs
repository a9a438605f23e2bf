//! 16 rows from the file to a [`Panel`].

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm_and_si128, _mm_cvtsi64_si128, _mm_set1_epi8, _mm_srli_epi16,
    _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_loadu_si256, _mm256_or_si256, _mm256_slli_epi32,
    _mm512_castsi256_si512, _mm512_castsi512_ps, _mm512_cmpeq_epi32_mask, _mm512_cvtepi64_epi32,
    _mm512_cvtph_ps, _mm512_loadu_si512, _mm512_mask_mov_epi32, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
    _mm512_sub_epi32,
};
use std::array::from_fn;

use ds4_kernels::Format;

use super::chunk::{CHUNK, Iq2, load16, mxfp4, q2_k_scaled, q4_k, q4_k_scales, q8_0};
use super::fold::transpose;
use crate::operands::{ROWS, Rows};
use crate::panel::{Line, Panel};

/// Fills `panel` with `rows`.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn unpack(rows: &Rows<'_>, panel: &mut Panel) {
    panel.reset(rows.format(), rows.cols());
    match rows.format() {
        Format::Q8_0 => {
            let rows = rows.blocks_of::<ROWS, 34>(0);
            codes(panel, |row, chunk| q8_0(rows[row], chunk));
            scales(&mut panel.d, |block| halves(&rows, block, 0));
        }
        Format::Mxfp4 => {
            let rows = rows.blocks_of::<ROWS, 17>(0);
            codes(panel, |row, chunk| mxfp4(rows[row], chunk));
            scales(&mut panel.d, |block| powers(&rows, block));
        }
        Format::Q2K => q2_k(&rows.blocks_of(0), panel),
        Format::Q4K => q4_k_panel(&rows.blocks_of(0), panel),
        Format::Iq2Xxs => iq2_xxs(&rows.blocks_of(0), panel),
        format => unreachable!("{format} has no 8-bit activations"),
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q2_k(rows: &[&[[u8; 84]]; ROWS], panel: &mut Panel) {
    codes(panel, |row, chunk| q2_k_scaled(&rows[row][chunk / 4], chunk % 4));
    scales(&mut panel.d, |block| halves(rows, block, 80));
    scales(&mut panel.dmin, |block| halves(rows, block, 82));
    groups(&mut panel.minimums, |row, block| {
        let minimums = _mm_srli_epi16::<4>(load16(&rows[row][block], 0));
        _mm256_cvtepu8_epi16(_mm_and_si128(minimums, _mm_set1_epi8(15)))
    });
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q4_k_panel(rows: &[&[[u8; 144]]; ROWS], panel: &mut Panel) {
    codes(panel, |row, chunk| q4_k(&rows[row][chunk / 4], chunk % 4));
    scales(&mut panel.d, |block| halves(rows, block, 0));
    scales(&mut panel.dmin, |block| halves(rows, block, 2));
    groups(&mut panel.steps, |row, block| {
        dwords(q4_k_scales(&rows[row][block]).0)
    });
    // One minimum to 32 values is the same to both of their groups of 16.
    groups(&mut panel.minimums, |row, block| {
        let minimums = dwords(q4_k_scales(&rows[row][block]).1);
        _mm256_or_si256(minimums, _mm256_slli_epi32::<16>(minimums))
    });
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
#[allow(clippy::needless_range_loop)] // the block is one of all rows
fn iq2_xxs(rows: &[&[[u8; 66]]; ROWS], panel: &mut Panel) {
    for block in 0..panel.blocks {
        let shared: [Iq2; ROWS] = from_fn(|row| Iq2::new(&rows[row][block]));
        for chunk in 0..4 {
            let columns = transpose(from_fn(|row| shared[row].unsigned(chunk)));
            store(&mut panel.codes[(4 * block + chunk) * 16..][..16], &columns);
        }
        let steps = transpose(from_fn(|row| {
            _mm512_castsi256_si512(_mm512_cvtepi64_epi32(shared[row].steps))
        }));
        store(&mut panel.steps[8 * block..][..8], &steps);
    }
    // The step is an odd integer; an eighth completes the scale.
    scales(&mut panel.d, |block| {
        _mm512_mul_ps(halves(rows, block, 0), _mm512_set1_ps(0.125))
    });
}

/// Chunk after chunk, `bytes(row, chunk)` of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn codes(panel: &mut Panel, bytes: impl Fn(usize, usize) -> __m512i) {
    for (chunk, lines) in panel
        .codes
        .as_chunks_mut::<{ CHUNK / 4 }>()
        .0
        .iter_mut()
        .enumerate()
    {
        store(lines, &transpose(from_fn(|row| bytes(row, chunk))));
    }
}

/// Block after block, eight dwords of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn groups<T>(lines: &mut [Line<T>], eight: impl Fn(usize, usize) -> __m256i) {
    for (block, lines) in lines.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        store(
            lines,
            &transpose(from_fn(|row| _mm512_castsi256_si512(eight(row, block)))),
        );
    }
}

/// Block after block, one number of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn scales(lines: &mut [Line<f32>], all: impl Fn(usize) -> __m512) {
    for (block, line) in lines.iter_mut().enumerate() {
        // SAFETY: a line is 64 bytes.
        unsafe { _mm512_storeu_ps(line.0.as_mut_ptr(), all(block)) };
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store<T>(lines: &mut [Line<T>], registers: &[__m512i; 16]) {
    for (line, register) in lines.iter_mut().zip(registers) {
        const { assert!(size_of::<Line<T>>() == 64) };
        // SAFETY: a line is 64 bytes, as just asserted.
        unsafe { _mm512_storeu_si512(std::ptr::from_mut(line).cast(), *register) };
    }
}

/// The halves at byte `at` of block `block` of all rows, widened.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn halves<const N: usize>(rows: &[&[[u8; N]]; ROWS], block: usize, at: usize) -> __m512 {
    let bits: [u16; ROWS] =
        from_fn(|row| u16::from_le_bytes([rows[row][block][at], rows[row][block][at + 1]]));
    // SAFETY: the array is 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) })
}

/// The halved powers of two of block `block` of all rows, as `ds4_kernels::half_of_power` has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn powers(rows: &[&[[u8; 17]]; ROWS], block: usize) -> __m512 {
    let exponents: [u32; ROWS] = from_fn(|row| u32::from(rows[row][block][0]));
    // SAFETY: the array is 64 bytes.
    let exponents = unsafe { _mm512_loadu_si512(exponents.as_ptr().cast()) };
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
    let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi32(1));
    let with_one = _mm512_mask_mov_epi32(
        normal,
        _mm512_cmpeq_epi32_mask(exponents, one),
        _mm512_set1_epi32(1 << 22),
    );
    let all = _mm512_mask_mov_epi32(
        with_one,
        _mm512_cmpeq_epi32_mask(exponents, zero),
        _mm512_set1_epi32(1 << 21),
    );
    _mm512_castsi512_ps(all)
}

/// Eight bytes widened.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn dwords(bytes: u64) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed()))
}
