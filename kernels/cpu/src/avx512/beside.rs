//! Rows of `Q8_0` times four to eight tokens: lanes are tokens, so that rows are read where they lie.
//!
//! For so few tokens a panel costs more than its products. Here eight codes of a row go to all tokens at once, and nothing of a row is moved.

use std::arch::x86_64::{
    __m128, __m512, __m512i, _mm_cvtph_ps, _mm_insert_epi16, _mm_setzero_si128, _mm512_add_epi32,
    _mm512_castps_si512, _mm512_castps128_ps512, _mm512_castsi512_ps, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_mul_ps,
    _mm512_permutexvar_ps, _mm512_set_epi32, _mm512_set1_epi8, _mm512_set1_epi64, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_xor_si512,
};
use std::hint::black_box;

use ds4_kernels::Format;

use super::vector::ask;
use crate::beside::{Beside, Line, MOST};
use crate::operands::{Put, ROWS, Rows};

/// Rows that share what is loaded of the tokens.
const FOUR: usize = 4;
/// Bytes of a block.
const BYTES: usize = 34;

/// The products of the rows with all tokens.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn product(rows: &Rows<'_>, tokens: &Beside, put: Put<'_>) {
    assert_eq!(rows.format(), Format::Q8_0, "the format of the rows");
    let mut out = [[0.0; ROWS]; MOST];
    for first in (0..rows.count()).step_by(FOUR) {
        let sums = four(&rows.blocks_of(first), &tokens.lines);
        for (t, out) in out.iter_mut().enumerate() {
            for row in 0..FOUR {
                out[first + row] = sums[row / 2][t / 2][row % 2][t % 2];
            }
        }
    }
    let of_tokens = out.iter().take(tokens.count).enumerate();
    of_tokens.for_each(|(token, values)| put(token, values));
}

/// Sums of two rows with all tokens, in the order of a register: `[two tokens][row][token]`.
type Sums = [[[f32; 2]; 2]; MOST / 2];

/// Four rows, block after block as `ds4_kernels::block::Block::accumulate`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn four(rows: &[&[[u8; BYTES]]; FOUR], lines: &[Line]) -> [Sums; 2] {
    let count = lines.len();
    assert!(rows.iter().all(|row| row.len() == count));
    let mut totals = [_mm512_setzero_ps(); 2];
    // A constant would be taken into the scalar side of each broadcast, which then is no longer part of a load.
    let offset = black_box(_mm512_set1_epi8(i8::MIN));
    for (at, line) in lines.iter().enumerate() {
        ask(rows[0].as_ptr().wrapping_add(FOUR * (count + at)), FOUR * BYTES);
        // SAFETY: all rows have `count` blocks, as asserted.
        let blocks = rows.map(|row| unsafe { row.get_unchecked(at) });
        let (d, mut all) = (halves(&blocks), [_mm512_setzero_si512(); FOUR]);
        for (dots, block) in all.iter_mut().zip(blocks) {
            *dots = of_block(block, line, offset);
        }
        // SAFETY: 16 floats, aligned as the line is.
        let scales = unsafe { _mm512_load_ps(line.scales.as_ptr().cast()) };
        for (i, total) in totals.iter_mut().enumerate() {
            let factor = _mm512_mul_ps(both(d, 2 * i), scales);
            let dots = _mm512_cvtepi32_ps(pairs(all[2 * i], all[2 * i + 1]));
            *total = _mm512_fmadd_ps(factor, dots, *total);
        }
    }
    totals.map(|total| {
        let mut sums = Sums::default();
        // SAFETY: 16 floats, the size of the array.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr().cast(), total) };
        sums
    })
}

/// The integers of one row's block with all tokens: two lanes of each, yet to be added.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_block(block: &[u8; BYTES], line: &Line, offset: __m512i) -> __m512i {
    let eights = block[2..].as_chunks::<8>().0;
    // SAFETY: 16 integers, aligned as the line is.
    let mut dots = unsafe { _mm512_load_si512(line.offsets.as_ptr().cast()) };
    for (eight, codes) in eights.iter().zip(&line.codes) {
        let weights = _mm512_xor_si512(_mm512_set1_epi64(i64::from_le_bytes(*eight)), offset);
        // SAFETY: 64 codes, aligned as the line is.
        dots = _mm512_dpbusd_epi32(dots, weights, unsafe { _mm512_load_si512(codes.as_ptr().cast()) });
    }
    dots
}

/// Adds the two lanes of each token: of two rows in the order of [`Sums`].
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn pairs(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    _mm512_add_epi32(
        _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(a, b)),
        _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(a, b)),
    )
}

/// The scales of one block of four rows.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn halves(blocks: &[&[u8; BYTES]; FOUR]) -> __m128 {
    let [a, b, c, d] = blocks.map(|block| i32::from(u16::from_le_bytes([block[0], block[1]])));
    let ab = _mm_insert_epi16::<1>(_mm_insert_epi16::<0>(_mm_setzero_si128(), a), b);
    _mm_cvtph_ps(_mm_insert_epi16::<3>(_mm_insert_epi16::<2>(ab, c), d))
}

/// The scales of rows `first` and `first + 1` in the order of [`Sums`].
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn both(scales: __m128, first: usize) -> __m512 {
    let order = if first == 0 {
        _mm512_set_epi32(1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0)
    } else {
        _mm512_set_epi32(3, 3, 2, 2, 3, 3, 2, 2, 3, 3, 2, 2, 3, 3, 2, 2)
    };
    _mm512_permutexvar_ps(order, _mm512_castps128_ps512(scales))
}
