//! The indexer's scores from rows as they are stored: four-bit codes, integer products, sixteen (or eight) rows side by side.

use std::arch::x86_64::*;

use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes};
use ds4_kernels::ops::indexer::{self, IndexQueries, WORD};

/// Values per row at most; wider rows take the definition's loops.
const WIDEST: usize = 256;
/// Added to a row's doubled values, so that they are unsigned: the largest is 12.
const OFFSET: i32 = 12;
/// Doubled and offset values by code.
const TABLE: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// Words of a row that lie in one block.
const WORDS: usize = INDEXER_BLOCK / WORD;

/// Some rows side by side: words of unsigned values and scales, row by row within each.
#[repr(align(64))]
struct Panel<const N: usize> {
    words: [[u32; N]; 2 * WIDEST / WORD],
    scales: [[f32; N]; WIDEST / INDEXER_BLOCK],
}

impl<const N: usize> Panel<N> {
    const EMPTY: Self = Self {
        words: [[0; N]; 2 * WIDEST / WORD],
        scales: [[0.0; N]; WIDEST / INDEXER_BLOCK],
    };

    /// Reads up to `N` encoded rows of `dim` values; columns without a row keep what they had. Both nibbles of a word are still in its
    /// even entry.
    #[inline(always)]
    fn read(&mut self, rows: &[u8], dim: usize) {
        for (r, row) in rows.chunks_exact(indexer_row_bytes(dim)).enumerate().take(N) {
            let (words, exponents) = row.split_at(dim / 2);
            for (w, word) in words.as_chunks::<4>().0.iter().enumerate() {
                self.words[2 * w][r] = u32::from_le_bytes(*word);
            }
            for (b, byte) in exponents.iter().enumerate() {
                self.scales[b][r] = f32::from_bits(u32::from(*byte) << 23);
            }
        }
    }
}

/// What the row offset adds to each block's sum, taken away beforehand: `[tokens][heads][blocks]`.
fn corrections(queries: &IndexQueries<'_>) -> Vec<i32> {
    let blocks = queries.codes.chunks_exact(INDEXER_BLOCK);
    blocks
        .map(|codes| -OFFSET * codes.iter().map(|code| i32::from(*code)).sum::<i32>())
        .collect()
}

/// One head's part of [`IndexQueries`] with its corrections.
#[derive(Clone, Copy)]
struct Head<'a> {
    codes: &'a [[i8; 4]],
    scales: &'a [f32],
    corrections: &'a [i32],
    weight: f32,
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn of(queries: &IndexQueries<'a>, corrections: &'a [i32], i: usize) -> Self {
        let blocks = queries.blocks();
        Self {
            codes: queries.codes[i * queries.dim..(i + 1) * queries.dim]
                .as_chunks()
                .0,
            scales: &queries.scales[i * blocks..(i + 1) * blocks],
            corrections: &corrections[i * blocks..(i + 1) * blocks],
            weight: queries.weights[i],
        }
    }
}

macro_rules! panel_scores {
    ($name:ident, $features:literal, $rows:literal, $heads:literal, $unpack:ident, $panel:ident) => {
        /// As [`indexer::scores`].
        #[target_feature(enable = $features)]
        pub(crate) fn $name(queries: &IndexQueries<'_>, rows: &[u8], out: &mut [f32]) {
            let (dim, heads) = (queries.dim, queries.heads);
            if dim > WIDEST || rows.is_empty() {
                return indexer::scores(queries, rows, out);
            }
            let size = indexer_row_bytes(dim);
            let count = rows.len() / size;
            assert!(
                rows.len() == count * size && out.len() == count * queries.tokens(),
                "scores are [tokens][rows]"
            );
            let corrections = corrections(queries);
            let mut panel = Panel::<$rows>::EMPTY;
            for (p, rows) in rows.chunks($rows * size).enumerate() {
                panel.read(rows, dim);
                $unpack(&mut panel, dim);
                for token in 0..queries.tokens() {
                    let mut scores = [0.0f32; $rows];
                    let head = |h: usize| Head::of(queries, &corrections, token * heads + h);
                    let mut h = 0;
                    while h + $heads <= heads {
                        $panel::<$heads>(&panel, std::array::from_fn(|i| head(h + i)), &mut scores);
                        h += $heads;
                    }
                    (h..heads).for_each(|h| $panel::<1>(&panel, [head(h)], &mut scores));
                    let out = &mut out[token * count + p * $rows..(token + 1) * count];
                    out.iter_mut()
                        .zip(scores)
                        .for_each(|(out, score)| *out = score);
                }
            }
        }
    };
}

panel_scores!(scores_avx2, "avx2,fma", 8, 4, unpack_avx2, panel_avx2);
panel_scores!(
    scores_avx512,
    "avx512bw,avx512vl,avx512vnni",
    16,
    8,
    unpack_avx512,
    panel_avx512
);

/// Turns the codes of every word into two words of unsigned values: even values, then odd ones.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
fn unpack_avx512(panel: &mut Panel<16>, dim: usize) {
    // SAFETY: the table has sixteen bytes, an entry sixteen words; loads and stores need no alignment.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE.as_ptr().cast()));
        let low = _mm512_set1_epi8(15);
        for pair in panel.words[..2 * dim / WORD].as_chunks_mut::<2>().0 {
            let codes = _mm512_loadu_si512(pair[0].as_ptr().cast());
            let even = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
            let odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low));
            _mm512_storeu_si512(pair[0].as_mut_ptr().cast(), even);
            _mm512_storeu_si512(pair[1].as_mut_ptr().cast(), odd);
        }
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
fn panel_avx512<const H: usize>(panel: &Panel<16>, heads: [Head<'_>; H], scores: &mut [f32; 16]) {
    // SAFETY: entries and scores have sixteen words; loads and stores need no alignment.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); H];
        for b in 0..heads[0].scales.len() {
            let mut integers = [_mm512_setzero_si512(); H];
            (0..H).for_each(|h| integers[h] = _mm512_set1_epi32(heads[h].corrections[b]));
            for w in b * 2 * WORDS..(b + 1) * 2 * WORDS {
                let rows = _mm512_loadu_si512(panel.words[w].as_ptr().cast());
                for h in 0..H {
                    let query =
                        _mm512_set1_epi32(i32::from_le_bytes(heads[h].codes[w].map(i8::cast_unsigned)));
                    integers[h] = _mm512_dpbusd_epi32(integers[h], rows, query);
                }
            }
            let scale = _mm512_loadu_ps(panel.scales[b].as_ptr());
            for h in 0..H {
                let of_block = _mm512_mul_ps(
                    _mm512_cvtepi32_ps(integers[h]),
                    _mm512_set1_ps(heads[h].scales[b]),
                );
                sums[h] = _mm512_fmadd_ps(of_block, scale, sums[h]);
            }
        }
        let mut total = _mm512_loadu_ps(scores.as_ptr());
        for h in 0..H {
            let positive = _mm512_max_ps(sums[h], _mm512_setzero_ps());
            total = _mm512_fmadd_ps(positive, _mm512_set1_ps(heads[h].weight), total);
        }
        _mm512_storeu_ps(scores.as_mut_ptr(), total);
    }
}

#[target_feature(enable = "avx2,fma")]
fn unpack_avx2(panel: &mut Panel<8>, dim: usize) {
    // SAFETY: the table has sixteen bytes, an entry eight words; loads and stores need no alignment.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast()));
        let low = _mm256_set1_epi8(15);
        for pair in panel.words[..2 * dim / WORD].as_chunks_mut::<2>().0 {
            let codes = _mm256_loadu_si256(pair[0].as_ptr().cast());
            let even = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
            let odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
            _mm256_storeu_si256(pair[0].as_mut_ptr().cast(), even);
            _mm256_storeu_si256(pair[1].as_mut_ptr().cast(), odd);
        }
    }
}

/// Sums of two products in 16 bits, at most 2 * 24 * 12; eight of them still fit.
#[target_feature(enable = "avx2,fma")]
fn panel_avx2<const H: usize>(panel: &Panel<8>, heads: [Head<'_>; H], scores: &mut [f32; 8]) {
    // SAFETY: entries and scores have eight words; loads and stores need no alignment.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); H];
        for b in 0..heads[0].scales.len() {
            let mut halves = [_mm256_setzero_si256(); H];
            for w in b * 2 * WORDS..(b + 1) * 2 * WORDS {
                let rows = _mm256_loadu_si256(panel.words[w].as_ptr().cast());
                for h in 0..H {
                    let query =
                        _mm256_set1_epi32(i32::from_le_bytes(heads[h].codes[w].map(i8::cast_unsigned)));
                    halves[h] = _mm256_add_epi16(halves[h], _mm256_maddubs_epi16(rows, query));
                }
            }
            let scale = _mm256_loadu_ps(panel.scales[b].as_ptr());
            for h in 0..H {
                let products = _mm256_madd_epi16(halves[h], _mm256_set1_epi16(1));
                let integers = _mm256_add_epi32(products, _mm256_set1_epi32(heads[h].corrections[b]));
                let of_block =
                    _mm256_mul_ps(_mm256_cvtepi32_ps(integers), _mm256_set1_ps(heads[h].scales[b]));
                sums[h] = _mm256_fmadd_ps(of_block, scale, sums[h]);
            }
        }
        let mut total = _mm256_loadu_ps(scores.as_ptr());
        for h in 0..H {
            let positive = _mm256_max_ps(sums[h], _mm256_setzero_ps());
            total = _mm256_fmadd_ps(positive, _mm256_set1_ps(heads[h].weight), total);
        }
        _mm256_storeu_ps(scores.as_mut_ptr(), total);
    }
}
