//! One block of 32 rows as signed bytes, each row in its own order.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_and_si128, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_prefetch,
    _mm_set1_epi8, _mm_slli_epi16, _mm_srli_epi16, _mm256_castsi128_si256, _mm256_inserti128_si256,
    _mm512_store_si512, _mm512_zextsi256_si512,
};
use std::ops::Range;

use ds4_kernels::{Format, Q8K_BLOCK};

use crate::avx512::chunk::{CHUNK, Iq2, load16, q2_k_scaled};
use crate::operands::{ROWS, Rows};
use crate::panel::LANES;

/// 64 bytes of each of 16 rows: what a tile takes.
pub(super) type Square = [[u8; CHUNK]; LANES];

/// Half of the rows.
#[repr(C, align(64))]
pub(super) struct Half {
    /// Weights times their steps, chunk after chunk: low parts, or all, and high parts of 128.
    pub(super) parts: [[Square; Q8K_BLOCK / CHUNK]; 2],
    /// The 16 minimums of each row: 16 times them, unsigned, and they themselves, then zeros; as [`crate::tiled::Columns`] has the sums.
    pub(super) minimums: Square,
}

/// What a format has no use for stays as it was.
#[repr(C, align(64))]
pub(super) struct Panel {
    pub(super) halves: [Half; 2],
}

/// Scales of the weights and of the minimums of a block of all rows.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) d: [f32; ROWS],
    pub(super) dmin: [f32; ROWS],
}

impl Scales {
    pub(super) const EMPTY: Self = Self {
        d: [0.0; ROWS],
        dmin: [0.0; ROWS],
    };
}

impl Panel {
    pub(super) const EMPTY: Self = Self {
        halves: [const {
            Half {
                parts: [[[[0; CHUNK]; LANES]; Q8K_BLOCK / CHUNK]; 2],
                minimums: [[0; CHUNK]; LANES],
            }
        }; 2],
    };

    /// Block `at` of some rows.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(super) fn unpack(&mut self, rows: &Rows<'_>, at: usize, some: Range<usize>, scales: &mut Scales) {
        match rows.format() {
            Format::Q2K => some.for_each(|row| self.q2_k(block_of(rows, row, at), row, scales)),
            Format::Iq2Xxs => some.for_each(|row| self.iq2_xxs(block_of(rows, row, at), row, scales)),
            format => unreachable!("{format} has no tiles"),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn q2_k(&mut self, block: &[u8; 84], row: usize, scales: &mut Scales) {
        let (half, lane) = (&mut self.halves[row / LANES], row % LANES);
        for (chunk, square) in half.parts[0].iter_mut().enumerate() {
            store(&mut square[lane], q2_k_scaled(block, chunk));
        }
        let minimums = _mm_and_si128(_mm_srli_epi16::<4>(load16(block, 0)), _mm_set1_epi8(15));
        // Below 16 each, so nothing is shifted into a neighbour.
        let both = _mm256_castsi128_si256(_mm_slli_epi16::<4>(minimums));
        let both = _mm256_inserti128_si256::<1>(both, minimums);
        store(&mut half.minimums[lane], _mm512_zextsi256_si512(both));
        (scales.d[row], scales.dmin[row]) = (half_at(block, 80), half_at(block, 82));
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn iq2_xxs(&mut self, block: &[u8; 66], row: usize, scales: &mut Scales) {
        let (half, lane) = (&mut self.halves[row / LANES], row % LANES);
        let groups = Iq2::new(block);
        for chunk in 0..Q8K_BLOCK / CHUNK {
            let [low, high] = groups.stepped(block, chunk);
            store(&mut half.parts[0][chunk][lane], low);
            store(&mut half.parts[1][chunk][lane], high);
        }
        // The step is an odd integer; an eighth completes the scale.
        scales.d[row] = half_at(block, 0) * 0.125;
    }
}

/// Block `at` of a row; memory is asked for the same block of the row that is as far behind as a task takes.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn block_of<'a, const BYTES: usize>(rows: &Rows<'a>, row: usize, at: usize) -> &'a [u8; BYTES] {
    let bytes = rows.row(row);
    let block = &bytes.as_chunks::<BYTES>().0[at];
    // Need not be mapped.
    _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(ROWS * bytes.len()).cast());
    block
}

/// The half at byte `at`, widened.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    let bits = i32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn store(line: &mut [u8; CHUNK], register: __m512i) {
    // SAFETY: a line is 64 bytes, and lines of `Half` are aligned to them.
    unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), register) };
}
