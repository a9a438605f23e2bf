//! Indexer queries, scores and picks.

use ds4_kernels::codec::{encode_indexer, indexer_row_bytes};
use ds4_kernels::ops::indexer::{IndexQueries, WORD, scores as reference, top_k, unpack_query};
use ds4_kernels_cuda::codec::index_queries;
use ds4_kernels_cuda::indexer::{Queries, pick, scores as on_device};

use crate::bench::compare;
use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "scores of the indexer",
        kernels: &["index_queries", "index_scores"],
        run: scores,
    },
    Case {
        name: "picks of the indexer",
        kernels: &["pick_rows"],
        run: picks,
    },
];

#[allow(clippy::cast_possible_truncation)] // a few hundred rows
fn scores(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, many) = (bench.tokens, bench.tokens > 64);
    let heads = bench.random.within(1, if many { 2 } else { 64 });
    let dim = 32 << bench.random.below(if many { 1 } else { 3 });
    let stride = bench.random.within(1, if many { 5 } else { 300 });
    let (queries, weights) = (
        bench.random.values(tokens * heads * dim),
        bench.random.values(tokens * heads),
    );
    let (factor, bytes) = (0.37_f32, indexer_row_bytes(dim));
    let mut rows = vec![0; stride * bytes];
    rows.chunks_exact_mut(bytes)
        .for_each(|out| encode_indexer(&mut bench.random.values(dim), out));
    let seen: Vec<u32> = (0..tokens)
        .map(|_| bench.random.within(0, stride) as u32)
        .collect();
    let (mut codes, mut scales) = (vec![0; queries.len()], vec![0.0; queries.len() / 32]);
    let outputs = codes.chunks_exact_mut(dim).zip(scales.chunks_exact_mut(dim / 32));
    for (head, (codes, scales)) in queries.chunks_exact(dim).zip(outputs) {
        let mut encoded = vec![0; bytes];
        encode_indexer(&mut head.to_vec(), &mut encoded);
        unpack_query(&encoded, codes, scales);
    }
    let scaled: Vec<f32> = weights.iter().map(|weight| weight * factor).collect();
    let mut expected = vec![0.0; tokens * stride];
    let of_host = IndexQueries {
        heads,
        dim,
        codes: &codes,
        scales: &scales,
        weights: &scaled,
    };
    reference(&of_host, &rows, &mut expected);
    let (x, rows, weights) = (
        bench.upload(&queries)?,
        bench.upload(&rows)?,
        bench.upload(&weights)?,
    );
    let (on_device_codes, on_device_scales) = (bench.room(codes.len())?, bench.room(scales.len())?);
    index_queries(
        bench.device,
        x.all(),
        dim,
        on_device_codes.all(),
        on_device_scales.all(),
    )?;
    bench.equal("codes of queries", &in_order(&codes), on_device_codes.all())?;
    bench.bits("scales of queries", &scales, on_device_scales.all())?;
    let queries = Queries {
        heads,
        dim,
        codes: on_device_codes.all(),
        scales: on_device_scales.all(),
        weights: weights.all(),
        factor,
    };
    let (visible, out) = (bench.upload(&seen)?, bench.room(tokens * stride)?);
    on_device(
        bench.device,
        &queries,
        rows.all(),
        visible.all(),
        stride,
        out.all(),
    )?;
    let found = bench.device.download(out.all())?;
    for (token, seen) in seen.iter().enumerate() {
        let visible = token * stride..token * stride + *seen as usize;
        let same = |a: &f32, b: &f32| a.to_bits() == b.to_bits();
        compare("scores", &expected[visible.clone()], &found[visible], same)?;
    }
    Ok(())
}

/// Codes in the order of their values, as the kernels have them: the reference has those of even values first.
fn in_order(codes: &[i8]) -> Vec<i8> {
    let of_word = |word: &[i8]| {
        (0..WORD)
            .map(|i| word[i / 2 + i % 2 * WORD / 2])
            .collect::<Vec<_>>()
    };
    codes.chunks_exact(WORD).flat_map(of_word).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // small integers
fn picks(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, many) = (bench.tokens, bench.tokens > 64);
    let stride = bench.random.within(2, if many { 20 } else { 1200 });
    let k = bench.random.within(1, stride - 1);
    let random = &mut bench.random;
    // Few different values, so that there are many ties; zeros of both signs differ.
    let value = |_| (random.below(9) as f32 - 4.0) * if random.below(2) == 0 { 0.5 } else { -0.5 };
    let scores: Vec<f32> = (0..tokens * stride).map(value).collect();
    // Of many tokens most see too few rows to choose from, which is quick.
    let seen = |token: usize| {
        let most = if many && !token.is_multiple_of(61) {
            k
        } else {
            stride
        };
        random.within(0, most) as u32
    };
    let seen: Vec<u32> = (0..tokens).map(seen).collect();
    let (x, visible) = (bench.upload(&scores)?, bench.upload(&seen)?);
    let (picks, counts) = (bench.room(tokens * k)?, bench.room(tokens)?);
    pick(bench.device, x.all(), visible.all(), picks.all(), counts.all())?;
    let expected_counts: Vec<u32> = seen.iter().map(|seen| (*seen).min(k as u32)).collect();
    bench.equal("numbers of picks", &expected_counts, counts.all())?;
    let found = bench.device.download(picks.all())?;
    for (token, seen) in seen.iter().enumerate() {
        let expected = top_k(&scores[token * stride..][..*seen as usize], k);
        compare("picks", &expected, &found[token * k..][..expected.len()], u32::eq)?;
    }
    Ok(())
}
