//! `Q2_K` rows times a few tokens: two rows share every register, a quarter for each group of 16 values.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_castsi128_si256, _mm256_inserti128_si256, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_broadcast_i64x4, _mm512_castsi256_si512, _mm512_cvtepu8_epi16, _mm512_dpbusd_epi32,
    _mm512_inserti64x4, _mm512_madd_epi16, _mm512_mullo_epi16, _mm512_permutex2var_epi32, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_slli_epi16, _mm512_srli_epi16,
    _mm512_unpackhi_epi16, _mm512_unpacklo_epi16,
};

use super::chunk::{Table, load16, load32};
use super::fold::sums_of_halves;

/// The integers of one block of eight rows with each token, and those of its minimums.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn dots<const T: usize>(
    blocks: &[&[u8; 84]; 8],
    codes: [&[i8; 256]; T],
    sums: [&[i16; 16]; T],
) -> ([__m256i; T], [__m256i; T]) {
    let (mut all, mut minimums) = ([[_mm512_setzero_si512(); 4]; T], [[_mm512_setzero_si512(); 4]; T]);
    for i in 0..4 {
        let two = Two::new(blocks[i], blocks[i + 4]);
        let mut dots = [_mm512_setzero_si512(); T];
        for part in 0..8 {
            let weights = two.weights(part);
            for t in 0..T {
                dots[t] = _mm512_dpbusd_epi32(dots[t], weights, twice(&codes[t].as_chunks::<32>().0[part]));
            }
        }
        for t in 0..T {
            all[t][i] = dots[t];
            minimums[t][i] = _mm512_madd_epi16(two.minimums, twice(sums[t]));
        }
    }
    let (mut out, mut of_minimums) = ([sums_of_halves(&all[0]); T], [sums_of_halves(&minimums[0]); T]);
    for t in 1..T {
        out[t] = sums_of_halves(&all[t]);
        of_minimums[t] = sums_of_halves(&minimums[t]);
    }
    (out, of_minimums)
}

/// One block of two rows.
struct Two {
    /// Both halves of the codes, those of the second row in the upper half of a register.
    codes: [__m512i; 2],
    /// Codes times their steps, looked up: four bytes for each group of 16 values.
    products: [__m512i; 2],
    /// One for each group of 16 values.
    minimums: __m512i,
}

impl Two {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn new(first: &[u8; 84], second: &[u8; 84]) -> Self {
        let codes = [16, 48].map(|at| {
            let low = _mm512_castsi256_si512(load32(first, at));
            _mm512_inserti64x4::<1>(low, load32(second, at))
        });
        let both = _mm256_castsi128_si256(load16(first, 0));
        let both = _mm512_cvtepu8_epi16(_mm256_inserti128_si256::<1>(both, load16(second, 0)));
        let steps = _mm512_and_si512(both, _mm512_set1_epi16(15));
        // 0 and 1 times the steps, and 2 and 3 times: at most 45, so no byte carries.
        let low = _mm512_slli_epi16::<8>(steps);
        let high = _mm512_mullo_epi16(steps, _mm512_set1_epi16(0x0302));
        Self {
            codes,
            products: [_mm512_unpacklo_epi16(low, high), _mm512_unpackhi_epi16(low, high)],
            minimums: _mm512_srli_epi16::<4>(both),
        }
    }

    /// 32 weights of each row times their steps, from value `32 * part` on.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn weights(&self, part: usize) -> __m512i {
        let codes = self.codes[part / 4];
        let shifted = match part % 4 {
            0 => codes,
            1 => _mm512_srli_epi16::<2>(codes),
            2 => _mm512_srli_epi16::<4>(codes),
            _ => _mm512_srli_epi16::<6>(codes),
        };
        let [low, high] = self.products;
        let products = _mm512_permutex2var_epi32(low, GROUPS.register(part), high);
        _mm512_shuffle_epi8(products, _mm512_and_si512(shifted, _mm512_set1_epi8(3)))
    }
}

/// 32 bytes in both halves of a register.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn twice<V>(values: &V) -> __m512i {
    const { assert!(size_of::<V>() == 32) };
    // SAFETY: 32 bytes, as just asserted; the load needs no alignment.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(std::ptr::from_ref(values).cast()) })
}

/// For each part, where `Two::products` has those of its two groups of the first row, then of the second, each for all of a quarter.
static GROUPS: Table<u32, 128> = Table(groups());

/// Of 16 words a quarter, the first four of each half went to the first register.
#[allow(clippy::cast_possible_truncation)] // below 32
const fn groups() -> [u32; 128] {
    let mut table = [0; 128];
    let mut i = 0;
    while i < 128 {
        let (part, quarter) = (i / 16, i % 16 / 4);
        let (row, group) = (quarter / 2, 2 * part + quarter % 2);
        // Groups 0 to 3 and 8 to 11 are in the first register.
        table[i] = (group / 4 % 2 * 16 + row * 8 + group / 8 * 4 + group % 4) as u32;
        i += 1;
    }
    table
}
