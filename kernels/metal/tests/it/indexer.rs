//! Indexer queries, scores and picks.

use ds4_kernels::codec::{encode_indexer, indexer_row_bytes};
use ds4_kernels::ops::indexer::{IndexQueries, scores, top_k, unpack_query};
use ds4_kernels_metal::codec::index_queries;
use ds4_kernels_metal::indexer::{Queries, pick, scores as on_device};

use crate::support::{Random, assert_bits, bench};

#[cfg_attr(test, test)]
pub fn scores_of_encoded_rows_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(1);
    for (tokens, heads, dim, stride) in [(1, 16, 32, 5), (2, 3, 128, 200), (3, 64, 128, 130)] {
        let queries = random.values(tokens * heads * dim);
        let weights = random.values(tokens * heads);
        let factor = 0.37f32;
        let bytes = indexer_row_bytes(dim);
        let mut rows = vec![0; stride * bytes];
        rows.chunks_exact_mut(bytes)
            .for_each(|out| encode_indexer(&mut random.values(dim), out));
        let seen: Vec<u32> = (0..tokens).map(|token| (stride - token * 3) as u32).collect();
        let (mut codes, mut scales) = (vec![0; queries.len()], vec![0.0; queries.len() / 32]);
        for (head, (codes, scales)) in queries
            .chunks_exact(dim)
            .zip(codes.chunks_exact_mut(dim).zip(scales.chunks_exact_mut(dim / 32)))
        {
            let mut encoded = vec![0; bytes];
            encode_indexer(&mut head.to_vec(), &mut encoded);
            unpack_query(&encoded, codes, scales);
        }
        let scaled: Vec<f32> = weights.iter().map(|weight| weight * factor).collect();
        let mut expected = vec![0.0; tokens * stride];
        scores(
            &IndexQueries {
                heads,
                dim,
                codes: &codes,
                scales: &scales,
                weights: &scaled,
            },
            &rows,
            &mut expected,
        );
        let (x, rows, weights, visible) = (
            bench.upload(&queries),
            bench.upload(&rows),
            bench.upload(&weights),
            bench.upload(&seen),
        );
        bench.each_order(|device| {
            let (codes, scales) = (bench.room(queries.len()), bench.room(queries.len() / 32));
            index_queries(device, x.all(), dim, codes.all(), scales.all()).unwrap();
            let queries = Queries {
                heads,
                dim,
                codes: codes.all(),
                scales: scales.all(),
                weights: weights.all(),
                factor,
            };
            let out = bench.room(tokens * stride);
            on_device(device, &queries, rows.all(), visible.all(), stride, out.all()).unwrap();
            let found = device.download(out.all()).unwrap();
            for (token, seen) in seen.iter().enumerate() {
                let visible = token * stride..token * stride + *seen as usize;
                assert_bits("scores", &expected[visible.clone()], &found[visible]);
            }
        });
    }
}

#[cfg_attr(test, test)]
pub fn picks_are_the_best_rows_ascending_and_ties_go_to_the_first() {
    let bench = bench();
    let mut random = Random(2);
    for (tokens, stride, k) in [(1, 5, 5), (2, 40, 7), (2, 700, 512), (1, 1000, 1)] {
        // Few different values, so that there are many ties; zeros of both signs differ.
        let value = |random: &mut Random| {
            (random.below(9) as f32 - 4.0) * if random.below(2) == 0 { 0.5 } else { -0.5 }
        };
        let scores: Vec<f32> = (0..tokens * stride).map(|_| value(&mut random)).collect();
        let seen: Vec<u32> = (0..tokens)
            .map(|token| (stride - token * (stride / 3)) as u32)
            .collect();
        let (x, visible) = (bench.upload(&scores), bench.upload(&seen));
        bench.each_order(|device| {
            let (picks, counts) = (bench.room(tokens * k), bench.room(tokens));
            pick(device, x.all(), visible.all(), picks.all(), counts.all()).unwrap();
            let (picks, counts) = (
                device.download(picks.all()).unwrap(),
                device.download(counts.all()).unwrap(),
            );
            for (token, seen) in seen.iter().enumerate() {
                let expected = top_k(&scores[token * stride..][..*seen as usize], k);
                assert_eq!(
                    picks[token * k..][..counts[token] as usize],
                    expected[..],
                    "{k} of {seen}"
                );
            }
        });
    }
}
