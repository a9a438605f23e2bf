//! From columns to rows: transposed registers, and sums over lanes of many registers at once.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi32, _mm256_permute2x128_si256, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm512_add_epi32,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_permutexvar_epi32,
    _mm512_set_epi32, _mm512_shuffle_i32x4, _mm512_shuffle_i64x2, _mm512_shuffle_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::array::from_fn;

/// Within each quarter of 128 bits: dword `j` of register `i` becomes dword `i` of register `j`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Dword `j` of register `i` becomes dword `i` of register `j`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut fours = rows;
    for four in fours.as_chunks_mut::<4>().0 {
        *four = transpose_quarters(*four);
    }
    // `fours[4 q + j]`: dwords j, 4 + j, 8 + j, 12 + j of rows 4 q to 4 q + 3. Now quarters move between registers.
    let halves: [__m512i; 16] = from_fn(|i| {
        let (q, j) = (i / 8 * 8, i % 4);
        let (a, b) = (fours[q + j], fours[q + 4 + j]);
        if i % 8 < 4 {
            _mm512_shuffle_i32x4::<0x88>(a, b)
        } else {
            _mm512_shuffle_i32x4::<0xdd>(a, b)
        }
    });
    from_fn(|i| {
        let (j, quarter) = (i % 4, i / 4);
        let at = if quarter % 2 == 0 { j } else { 4 + j };
        let (a, b) = (halves[at], halves[8 + at]);
        if quarter < 2 {
            _mm512_shuffle_i32x4::<0x88>(a, b)
        } else {
            _mm512_shuffle_i32x4::<0xdd>(a, b)
        }
    })
}

/// Lane `i` of the result is the sum over the lanes of register `i`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn sums(rows: &[__m512i; 16]) -> __m512i {
    let halves: [__m512i; 8] = from_fn(|i| {
        let (a, b) = (rows[i], rows[i + 8]);
        _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0x44>(a, b),
            _mm512_shuffle_i32x4::<0xee>(a, b),
        )
    });
    let quarters: [__m512i; 4] = from_fn(|i| {
        let (a, b) = (halves[i], halves[i + 4]);
        _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
        )
    });
    let pairs: [__m512i; 2] = from_fn(|i| {
        let (a, b) = (quarters[i], quarters[i + 2]);
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    });
    let (a, b) = (_mm512_castsi512_ps(pairs[0]), _mm512_castsi512_ps(pairs[1]));
    let even = _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(a, b));
    let odd = _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(a, b));
    // Quarters hold rows 0, 8, 4 and 12 on, each of them 0, 2, 1, 3.
    let order = _mm512_set_epi32(15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0);
    _mm512_permutexvar_epi32(order, _mm512_add_epi32(even, odd))
}

/// The same for eight registers of eight lanes.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn sums8(rows: &[__m256i; 8]) -> __m256i {
    let twos: [__m256i; 4] = from_fn(|i| {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
    });
    let fours: [__m256i; 2] = from_fn(|i| {
        let (a, b) = (twos[2 * i], twos[2 * i + 1]);
        _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
    });
    _mm256_add_epi32(
        _mm256_permute2x128_si256::<0x20>(fours[0], fours[1]),
        _mm256_permute2x128_si256::<0x31>(fours[0], fours[1]),
    )
}

/// The same for eight registers of 16 lanes.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn sums_of_wide(rows: &[__m512i; 8]) -> __m256i {
    // Rows i and i + 4 share a register: four lanes each of both halves of 256 bits.
    let halves: [__m512i; 4] = from_fn(|i| {
        let (a, b) = (rows[i], rows[i + 4]);
        _mm512_add_epi32(
            _mm512_shuffle_i64x2::<0x44>(a, b),
            _mm512_shuffle_i64x2::<0xee>(a, b),
        )
    });
    sums_of_halves(&halves)
}

/// The same for four registers, of which the lower half belongs to row `i` and the upper half to row `i + 4`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn sums_of_halves(halves: &[__m512i; 4]) -> __m256i {
    let twos: [__m512i; 2] = from_fn(|i| {
        let (a, b) = (halves[2 * i], halves[2 * i + 1]);
        _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    });
    let (a, b) = (twos[0], twos[1]);
    let fours = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    // Quarters 0 and 1 are rows 0 to 3, quarters 2 and 3 rows 4 to 7.
    let even = _mm512_shuffle_i64x2::<0b00_00_10_00>(fours, fours);
    let odd = _mm512_shuffle_i64x2::<0b00_00_11_01>(fours, fours);
    _mm512_castsi512_si256(_mm512_add_epi32(even, odd))
}
