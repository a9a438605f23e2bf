//! Rows from the file to a [`Panel`]: the first half to the first register of every line, the second to the second.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_and_si128, _mm_cvtsi64_si128, _mm_set1_epi8, _mm_srli_epi16,
    _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_or_si256, _mm256_slli_epi32, _mm512_castps_si512,
    _mm512_castsi128_si512, _mm512_castsi256_si512, _mm512_castsi512_ps, _mm512_cmpeq_epi32_mask,
    _mm512_cvtepi32_epi16, _mm512_cvtepi64_epi32, _mm512_cvtph_ps, _mm512_inserti32x4, _mm512_loadu_si512,
    _mm512_mask_mov_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32, _mm512_xor_si512,
};
use std::array::from_fn;
use std::ops::Range;

use ds4_kernels::Format;

use super::ahead::{Ahead, OF_HALF};
use super::chunk::{CHUNK, Iq2, load16, mxfp4, q2_k_scaled, q4_k};
use super::fold::{transpose, transpose_quarters};
use crate::operands::Rows;
use crate::panel::{LANES, Line, Panel};
use crate::q4_k;

/// Groups of 32 values of a chunk.
const GROUPS: usize = CHUNK / 32;

/// Fills `panel` with some blocks of `rows`.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn unpack(rows: &Rows<'_>, blocks: Range<usize>, panel: &mut Panel, ahead: &mut Ahead) {
    panel.reset(rows.format(), blocks.clone());
    for half in 0..2 {
        let first = half * LANES;
        match rows.format() {
            Format::Q8_0 => q8_0(&rows.part_of(first, &blocks), panel, half, ahead),
            Format::Mxfp4 => {
                let rows = rows.part_of::<LANES, 17>(first, &blocks);
                codes(panel, half, ahead, |row, chunk| mxfp4(rows[row], chunk));
                scales(&mut panel.d, half, |block| powers(&rows, block));
            }
            Format::Q2K => q2_k(&rows.part_of(first, &blocks), panel, half, ahead),
            Format::Q4K => q4_k_panel(&rows.part_of(first, &blocks), panel, half, ahead),
            Format::Iq2Xxs => iq2_xxs(&rows.part_of(first, &blocks), panel, half, ahead),
            format => unreachable!("{format} has no 8-bit activations"),
        }
    }
}

/// Codes are bytes already: four rows share a register, and only dwords within quarters change places.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q8_0(rows: &[&[[u8; 34]]; LANES], panel: &mut Panel, half: usize, ahead: &mut Ahead) {
    let (blocks, offset) = (panel.blocks.len(), _mm512_set1_epi8(i8::MIN));
    assert!(rows.iter().all(|row| row.len() == blocks));
    for (block, lines) in panel
        .codes
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .take(blocks)
        .enumerate()
    {
        // SAFETY: all rows have `blocks` blocks, as asserted.
        let blocks: [&[u8; 34]; LANES] = from_fn(|row| unsafe { rows[row].get_unchecked(block) });
        ahead.ask(OF_HALF);
        for (part, lines) in lines.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let of_rows = |i: usize| quarters(from_fn(|q| load16(blocks[i + 4 * q], 2 + 16 * part)));
            let lines_of = transpose_quarters(from_fn(of_rows)).map(|line| _mm512_xor_si512(line, offset));
            store(lines, half, &lines_of);
        }
    }
    halves(&mut panel.d, half, rows, 0);
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q2_k(rows: &[&[[u8; 84]]; LANES], panel: &mut Panel, half: usize, ahead: &mut Ahead) {
    codes(panel, half, ahead, |row, chunk| {
        q2_k_scaled(&rows[row][chunk / 4], chunk % 4)
    });
    halves(&mut panel.d, half, rows, 80);
    halves(&mut panel.dmin, half, rows, 82);
    groups(&mut panel.minimums, half, |row, block| {
        let minimums = _mm_srli_epi16::<4>(load16(&rows[row][block], 0));
        _mm256_cvtepu8_epi16(_mm_and_si128(minimums, _mm_set1_epi8(15)))
    });
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn q4_k_panel(rows: &[&[[u8; 144]]; LANES], panel: &mut Panel, half: usize, ahead: &mut Ahead) {
    codes(panel, half, ahead, |row, chunk| {
        q4_k(&rows[row][chunk / 4], chunk % 4)
    });
    halves(&mut panel.d, half, rows, 0);
    halves(&mut panel.dmin, half, rows, 2);
    groups(&mut panel.steps, half, |row, block| {
        dwords(q4_k::scales(&rows[row][block]).0)
    });
    // One minimum to 32 values is the same to both of their groups of 16.
    groups(&mut panel.minimums, half, |row, block| {
        let minimums = dwords(q4_k::scales(&rows[row][block]).1);
        _mm256_or_si256(minimums, _mm256_slli_epi32::<16>(minimums))
    });
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
#[allow(clippy::needless_range_loop)] // the block is one of all rows
fn iq2_xxs(rows: &[&[[u8; 66]]; LANES], panel: &mut Panel, half: usize, ahead: &mut Ahead) {
    for block in 0..panel.blocks.len() {
        let shared: [Iq2; LANES] = from_fn(|row| Iq2::new(&rows[row][block]));
        for chunk in 0..4 {
            ahead.ask(GROUPS * OF_HALF);
            let columns = transpose(from_fn(|row| shared[row].unsigned(chunk)));
            store(&mut panel.codes[(4 * block + chunk) * 16..][..16], half, &columns);
        }
        let steps = transpose(from_fn(|row| {
            _mm512_castsi256_si512(_mm512_cvtepi64_epi32(shared[row].steps))
        }));
        store(&mut panel.steps[8 * block..][..8], half, &steps);
    }
    halves(&mut panel.d, half, rows, 0);
    // The step is an odd integer; an eighth completes the scale.
    panel.d.iter_mut().for_each(|line| {
        line.0[half * LANES..][..LANES]
            .iter_mut()
            .for_each(|d| *d *= 0.125);
    });
}

/// Chunk after chunk, `bytes(row, chunk)` of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn codes(panel: &mut Panel, half: usize, ahead: &mut Ahead, bytes: impl Fn(usize, usize) -> __m512i) {
    for (chunk, lines) in panel
        .codes
        .as_chunks_mut::<{ CHUNK / 4 }>()
        .0
        .iter_mut()
        .enumerate()
    {
        ahead.ask(GROUPS * OF_HALF);
        store(lines, half, &transpose(from_fn(|row| bytes(row, chunk))));
    }
}

/// Block after block, eight dwords of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn groups<T>(lines: &mut [Line<T>], half: usize, eight: impl Fn(usize, usize) -> __m256i) {
    for (block, lines) in lines.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let rows = from_fn(|row| _mm512_castsi256_si512(eight(row, block)));
        store(lines, half, &transpose(rows));
    }
}

/// Block after block, one number of every row.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn scales(lines: &mut [Line<f32>], half: usize, all: impl Fn(usize) -> __m512) {
    for (block, line) in lines.iter_mut().enumerate() {
        store(
            std::slice::from_mut(line),
            half,
            &[_mm512_castps_si512(all(block))],
        );
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store<T>(lines: &mut [Line<T>], half: usize, registers: &[__m512i]) {
    for (line, register) in lines.iter_mut().zip(registers) {
        const { assert!(size_of::<Line<T>>() == 128) };
        assert!(half < 2);
        // SAFETY: a line is two registers, as just asserted.
        unsafe {
            let start = std::ptr::from_mut(line).cast::<__m512i>();
            _mm512_storeu_si512(start.add(half).cast(), *register);
        }
    }
}

/// Four times 16 bytes, one in each quarter.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn quarters([a, b, c, d]: [__m128i; 4]) -> __m512i {
    let two = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(two, c), d)
}

/// The halves at byte `at` of all blocks of all rows, widened. First all are put beside each other, where the floats will be: a register
/// that is loaded right behind 16 small stores waits for them.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn halves<const N: usize>(lines: &mut [Line<f32>], half: usize, rows: &[&[[u8; N]]; LANES], at: usize) {
    let place = half * LANES;
    for (row, blocks) in rows.iter().enumerate() {
        for (line, block) in lines.iter_mut().zip(*blocks) {
            line.0[place + row] = f32::from_bits(u32::from(u16::from_le_bytes([block[at], block[at + 1]])));
        }
    }
    for line in lines {
        let of_half = &mut line.0[place..place + LANES];
        // SAFETY: the slice has 16 values of 32 bits, whose lower halves are what is widened.
        unsafe {
            let bits = _mm512_cvtepi32_epi16(_mm512_loadu_si512(of_half.as_ptr().cast()));
            _mm512_storeu_ps(of_half.as_mut_ptr(), _mm512_cvtph_ps(bits));
        }
    }
}

/// The halved powers of two of block `block` of all rows, as `ds4_kernels::half_of_power` has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn powers(rows: &[&[[u8; 17]]; LANES], block: usize) -> __m512 {
    let exponents: [u32; LANES] = from_fn(|row| u32::from(rows[row][block][0]));
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
