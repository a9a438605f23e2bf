//! Choosing the compressed rows that a query attends to.

use crate::Backend;

/// `sum over heads of relu(q_h . row) * weight_h`, heads ascending. `queries` is `[heads][row.len()]`.
pub fn score<B: Backend + ?Sized>(backend: &B, queries: &[f32], weights: &[f32], row: &[f32]) -> f32 {
    let heads = queries.chunks_exact(row.len()).zip(weights);
    heads.fold(0.0, |sum, (query, weight)| {
        sum + backend.dot(query, row).max(0.0) * weight
    })
}

/// The `k` best of `scores`, ties to the lowest index; ascending. All of them when there are no more than `k`.
#[must_use]
pub fn top_k(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if order.len() > k {
        order.select_nth_unstable_by(k, |a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(k);
        order.sort_unstable();
    }
    order
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
    }
}
