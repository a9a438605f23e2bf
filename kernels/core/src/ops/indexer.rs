//! Choosing the compressed rows that a query attends to.

use crate::codec::{INDEXER_BLOCK, e2m1_twice, indexer_row_bytes, stored_power};
use crate::ops::Ops;
use crate::ops::attention::Heads;

/// Values in the bytes that are read as one: four bytes, two values each.
pub const WORD: usize = 8;

/// The indexer's queries of some tokens, in the form in which scores are taken.
#[derive(Clone, Copy, Debug)]
pub struct IndexQueries<'a> {
    /// Heads per token.
    pub heads: usize,
    /// Values per head.
    pub dim: usize,
    /// Twice the value of every code, `[tokens][heads][dim]`; of each [`WORD`] the even values first, as the nibbles of a row lie.
    pub codes: &'a [i8],
    /// A quarter of every scale, `[tokens][heads][dim / 32]`: query and row values are both doubled.
    pub scales: &'a [f32],
    /// Weights of the heads, `[tokens][heads]`.
    pub weights: &'a [f32],
}

impl IndexQueries<'_> {
    /// Tokens whose queries these are.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.weights.len() / self.heads
    }

    /// Scales per head.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.dim / INDEXER_BLOCK
    }
}

/// Brings one head's encoded query into the form of [`IndexQueries`].
pub fn unpack_query(bytes: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    let (nibbles, exponents) = bytes.split_at(codes.len() / 2);
    for (word, codes) in nibbles.chunks_exact(WORD / 2).zip(codes.chunks_exact_mut(WORD)) {
        for (i, pair) in word.iter().enumerate() {
            codes[i] = e2m1_twice(pair & 15);
            codes[i + WORD / 2] = e2m1_twice(pair >> 4);
        }
    }
    scales
        .iter_mut()
        .zip(exponents)
        .for_each(|(scale, byte)| *scale = stored_power(*byte) * 0.25);
}

/// `out[token][row] = sum over heads of relu(query . row) * weight`, heads ascending, straight from encoded rows.
///
/// A block's products are an exact integer; the blocks are added ascending, each with one fused multiply-add of its two scales.
///
/// # Panics
/// When `rows` is no whole number of rows or `out` is not `[tokens][rows]`.
#[inline(always)]
pub fn scores(queries: &IndexQueries<'_>, rows: &[u8], out: &mut [f32]) {
    let size = indexer_row_bytes(queries.dim);
    let count = rows.len() / size;
    assert!(
        rows.len() == count * size && out.len() == count * queries.tokens(),
        "scores are [tokens][rows]"
    );
    let (codes, scales) = (queries.heads * queries.dim, queries.heads * queries.blocks());
    for (r, row) in rows.chunks_exact(size).enumerate() {
        for token in 0..queries.tokens() {
            let mut score = 0.0f32;
            for h in 0..queries.heads {
                let query = &queries.codes[token * codes + h * queries.dim..][..queries.dim];
                let scales = &queries.scales[token * scales + h * queries.blocks()..][..queries.blocks()];
                let weight = queries.weights[token * queries.heads + h];
                score = dot(query, scales, row).max(0.0).mul_add(weight, score);
            }
            out[token * count + r] = score;
        }
    }
}

#[inline(always)]
#[allow(clippy::cast_precision_loss)] // at most 32 * 12 * 12
fn dot(query: &[i8], scales: &[f32], row: &[u8]) -> f32 {
    let (nibbles, exponents) = row.split_at(query.len() / 2);
    let mut sum = 0.0f32;
    let blocks = query
        .chunks_exact(INDEXER_BLOCK)
        .zip(nibbles.chunks_exact(INDEXER_BLOCK / 2));
    for (b, (query, nibbles)) in blocks.enumerate() {
        let mut integer = 0;
        for (query, word) in query.chunks_exact(WORD).zip(nibbles.chunks_exact(WORD / 2)) {
            for (i, pair) in word.iter().enumerate() {
                integer += i32::from(query[i]) * i32::from(e2m1_twice(pair & 15));
                integer += i32::from(query[i + WORD / 2]) * i32::from(e2m1_twice(pair >> 4));
            }
        }
        sum = (integer as f32 * scales[b]).mul_add(stored_power(exponents[b]), sum);
    }
    sum
}

/// The same for queries and rows that are not rounded: `queries` `[tokens][heads][dim]`, `weights` `[tokens][heads]`, `rows` `[rows][dim]`.
pub fn plain_scores(ops: &Ops, queries: &[f32], dim: usize, weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let stride = rows.len() / dim;
    let heads = queries.len() / dim * stride / out.len();
    let mut products = vec![0.0; heads * stride];
    for ((queries, weights), out) in queries
        .chunks_exact(heads * dim)
        .zip(weights.chunks_exact(heads))
        .zip(out.chunks_exact_mut(stride))
    {
        (ops.scores)(
            &Heads {
                queries,
                dim,
                scale: 1.0,
                stride,
            },
            rows,
            &mut products,
        );
        out.fill(0.0);
        for (products, weight) in products.chunks_exact(stride).zip(weights) {
            for (score, product) in out.iter_mut().zip(products) {
                *score = product.max(0.0).mul_add(*weight, *score);
            }
        }
    }
}

/// The `k` best of `scores`, ties to the lowest index; ascending. All of them when there are no more than `k`. Linear in their number.
#[must_use]
pub fn top_k(scores: &[f32], k: usize) -> Vec<u32> {
    let count = u32::try_from(scores.len()).expect("fewer rows than 2^32");
    if scores.len() <= k {
        return (0..count).collect();
    }
    let mut keys: Vec<u32> = scores.iter().map(|score| ordered(*score)).collect();
    let (better, least, _) = keys.select_nth_unstable_by(k, |a, b| b.cmp(a));
    let least = *least;
    let mut ties = better.iter().filter(|key| **key == least).count();
    let mut kept = Vec::with_capacity(k);
    for (i, score) in (0..count).zip(scores) {
        let key = ordered(*score);
        let tie = key == least && ties > 0;
        if key > least || tie {
            kept.push(i);
            ties -= usize::from(tie);
        }
    }
    kept
}

/// Bits in the order of the numbers, as `total_cmp` has it.
#[inline(always)]
const fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_index_and_the_answer_ascends() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 2.0, 3.0], 2), [1, 2]);
        assert_eq!(top_k(&[1.0, 3.0], 2), [0, 1]);
        assert_eq!(top_k(&[0.0; 6], 3), [0, 1, 2]);
        assert_eq!(top_k(&[0.0, 5.0, 1.0], 1), [1]);
        assert_eq!(top_k(&[-1.0, -3.0, f32::NEG_INFINITY, -2.0], 3), [0, 1, 3]);
        assert_eq!(top_k(&[1.0, 2.0], 0), [0u32; 0]);
    }

    #[test]
    fn the_choice_is_that_of_a_sort() {
        for n in [1usize, 7, 100, 1000] {
            let scores: Vec<f32> = (0..n)
                .map(|i| ((i * i) as f32 * 0.37).sin() * 4.0)
                .map(|x| (x * 8.0).round() / 8.0)
                .collect();
            for k in [1, 2, n / 2, n.saturating_sub(1), n, n + 1] {
                let mut order: Vec<u32> = (0..n as u32).collect();
                order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
                order.truncate(k);
                order.sort_unstable();
                assert_eq!(top_k(&scores, k), order, "{k} of {n}");
            }
        }
    }
}
