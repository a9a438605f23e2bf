//! Every operation at every level has the bits of its definition: over shapes that are no multiple of a tile, into outputs full of NaN.

use ds4_kernels::ops::Ops;
use ds4_kernels::ops::attention::Heads;
use ds4_kernels::ops::compressor::Slot;
use ds4_kernels::ops::hyper::Mixing;
use ds4_kernels::ops::indexer::{IndexQueries, unpack_query};
use ds4_kernels::ops::rope::Rope;
use ds4_kernels::{Activations, Backend, Form, Format, Matrix, Scalar, codec};
use ds4_kernels_cpu::{Cpu, Level};
use proptest::prelude::*;

/// The tables of all levels that this machine has.
fn levels() -> Vec<(Level, &'static Ops)> {
    let table = |level| (level, Cpu::new(Some(1), Some(level)).expect("available").ops());
    Level::ALL
        .into_iter()
        .filter(|level| level.available())
        .map(table)
        .collect()
}

/// `count` values from a few random ones, of several magnitudes.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count)
        .map(|_| next() * 2f32.powi((next() * 6.0) as i32))
        .collect()
}

/// Asserts that `run` fills equal outputs of `count` values, whatever was in them.
fn same(what: &str, count: usize, run: impl Fn(&Ops, &mut [f32])) {
    let mut expected = vec![f32::NAN; count];
    run(&Ops::SCALAR, &mut expected);
    assert!(
        expected.iter().all(|x| !x.is_nan()),
        "{what}: the definition fills its output"
    );
    for (level, ops) in levels() {
        let mut found = vec![f32::NAN; count];
        run(ops, &mut found);
        let at = (0..count).find(|i| found[*i].to_bits() != expected[*i].to_bits());
        assert!(at.is_none(), "{what} at {level}: value {at:?} of {count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    #[test]
    fn norms_and_rotations(seed in any::<u64>(), width in 1_usize..300, pairs in 1_usize..40, position in 0_u64..2_000_000) {
        let (x, weight) = (values(seed, width), values(seed + 1, width));
        for weight in [None, Some(weight.as_slice())] {
            same("rms", width, |ops, out| {
                out.copy_from_slice(&x);
                (ops.rms)(out, weight, 1e-6);
            });
        }
        let rotation = Rope::new(10_000.0, 2 * pairs, None).at(position);
        let head = values(seed, 2 * pairs + width);
        for back in [false, true] {
            same("rotate", head.len(), |ops, out| {
                out.copy_from_slice(&head);
                (if back { ops.rotate_back } else { ops.rotate })(&rotation, out);
            });
        }
    }

    #[test]
    fn hyper_connections(seed in any::<u64>(), streams in 1_usize..=8, width in 1_usize..100) {
        let rows = (2 + streams) * streams;
        let (base, raw, old) = (values(seed, rows), values(seed + 1, rows), values(seed + 2, streams * width));
        let mixing = Mixing { scale: &[0.7, 1.1, 0.3], base: &base, streams, iterations: 20, eps: 1e-6, rms_eps: 1e-6 };
        same("mix", rows, |ops, out| {
            out.copy_from_slice(&raw);
            (ops.mix)(out, &old, &mixing);
        });
        let mut mix = raw.clone();
        (Ops::SCALAR.mix)(&mut mix, &old, &mixing);
        same("gather", width, |ops, out| (ops.gather)(&mix[..streams], &old, out));
        let block = values(seed + 3, width);
        same("scatter", streams * width, |ops, out| {
            out.copy_from_slice(&old);
            (ops.scatter)(&mix, &block, out);
        });
    }

    #[test]
    fn sums_of_experts(seed in any::<u64>(), experts in 0_usize..9, width in 1_usize..100, clamp in 0.1_f32..5.0) {
        let (before, parts) = (values(seed, width), values(seed + 1, experts * width));
        same("combine", width, |ops, out| {
            out.copy_from_slice(&before);
            (ops.combine)(out, &parts);
        });
        let up = values(seed + 2, width);
        same("swiglu", width, |ops, out| {
            out.copy_from_slice(&before);
            (ops.swiglu)(out, &up, clamp, 0.7);
        });
    }

    #[test]
    fn pooling(seed in any::<u64>(), slots in 1_usize..20, width in 1_usize..70) {
        let (x, gates) = (values(seed, slots * width), values(seed + 1, slots * width));
        let slots: Vec<Slot<'_>> = x.chunks(width).zip(gates.chunks(width)).map(|(values, gates)| Slot { values, gates }).collect();
        same("pool", width, |ops, out| (ops.pool)(&slots, out));
    }

    #[test]
    fn stored_rows(seed in any::<u64>(), blocks in 1_usize..5, tail in 0_usize..40, log in 5_u32..9) {
        let width = 64 * blocks + tail;
        let row = values(seed, width);
        let size = codec::kv_row_bytes(width, tail);
        let encoded = |ops: &Ops, filler: u8| {
            let mut bytes = vec![filler; size];
            (ops.encode_kv)(&row, tail, &mut bytes);
            bytes
        };
        let bytes = encoded(&Ops::SCALAR, 0);
        same("decode_kv", width, |ops, out| (ops.decode_kv)(&bytes, tail, out));
        let row = values(seed, 1 << log);
        let indexed = |ops: &Ops, filler: u8| {
            let mut bytes = vec![filler; codec::indexer_row_bytes(row.len())];
            (ops.encode_indexer)(&mut row.clone(), &mut bytes);
            bytes
        };
        for (level, ops) in levels() {
            prop_assert_eq!(encoded(ops, 0xff), bytes.clone(), "encode_kv at {}", level);
            prop_assert_eq!(indexed(ops, 0xff), indexed(&Ops::SCALAR, 0), "encode_indexer at {}", level);
        }
    }

    #[test]
    fn attention(seed in any::<u64>(), heads in 1_usize..11, rows in 1_usize..150, eighths in 1_usize..20, gap in 0_usize..5) {
        let dim = 8 * eighths + usize::from(eighths == 7);
        let (stride, scale) = (rows + gap, 0.125);
        let (queries, keys) = (values(seed, heads * dim), values(seed + 1, rows * dim));
        let heads_of = Heads { queries: &queries, dim, scale, stride };
        // The gap between two heads' scores is not written.
        same("scores", heads * stride, |ops, out| {
            out.chunks_mut(stride).for_each(|out| out[rows..].fill(7.0));
            (ops.scores)(&heads_of, &keys, out);
        });
        let weights = values(seed + 2, heads * stride);
        same("softmax", stride, |ops, out| {
            out.copy_from_slice(&weights[..stride]);
            (ops.softmax)(out, 0.3);
        });
        let before = values(seed + 3, heads * dim);
        same("blend", heads * dim, |ops, out| {
            out.copy_from_slice(&before);
            (ops.blend)(&weights, stride, &keys, dim, out);
        });
    }

    #[test]
    fn indexer(seed in any::<u64>(), (tokens, heads, rows) in (1_usize..4, 1_usize..20, 1_usize..50), log in 5_u32..9) {
        let dim = 1 << log;
        let (blocks, size) = (dim / codec::INDEXER_BLOCK, codec::indexer_row_bytes(dim));
        let encoded = |seed, count: usize| {
            let mut bytes = vec![0; count * size];
            for (row, out) in values(seed, count * dim).chunks_mut(dim).zip(bytes.chunks_mut(size)) {
                codec::encode_indexer(row, out);
            }
            bytes
        };
        let (stored, asked) = (encoded(seed, rows), encoded(seed + 1, tokens * heads));
        let (mut codes, mut scales) = (vec![0; tokens * heads * dim], vec![0.0; tokens * heads * blocks]);
        for (i, bytes) in asked.chunks(size).enumerate() {
            unpack_query(bytes, &mut codes[i * dim..][..dim], &mut scales[i * blocks..][..blocks]);
        }
        let weights = values(seed + 2, tokens * heads);
        let queries = IndexQueries { heads, dim, codes: &codes, scales: &scales, weights: &weights };
        same("index_scores", tokens * rows, |ops, out| (ops.index_scores)(&queries, &stored, out));

        // The definition against the decoded numbers: integers and powers of two, so the two agree but for the order of four blocks.
        let mut found = vec![f32::NAN; tokens * rows];
        (Ops::SCALAR.index_scores)(&queries, &stored, &mut found);
        let decoded = |bytes: &[u8]| -> Vec<f32> {
            let mut out = vec![f32::NAN; dim];
            bytes.chunks(size).flat_map(|row| { codec::decode_indexer(row, &mut out); out.clone() }).collect()
        };
        let (q, k) = (decoded(&asked), decoded(&stored));
        for (i, found) in found.iter().enumerate() {
            let (token, row) = (i / rows, &k[i % rows * dim..][..dim]);
            let heads = q[token * heads * dim..][..heads * dim].chunks(dim).zip(&weights[token * heads..]);
            let parts: Vec<f64> = heads.map(|(q, w)| {
                q.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().max(0.0) * f64::from(*w)
            }).collect();
            let (expected, most) = (parts.iter().sum::<f64>(), parts.iter().map(|x| x.abs()).sum::<f64>());
            prop_assert!((f64::from(*found) - expected).abs() <= 1e-5 * most + 1e-12, "{} {}", found, expected);
        }
    }
}

#[test]
fn groups_of_rows_take_rows_of_their_own() {
    for (groups, rank, width, tokens) in [(1, 5, 32, 3), (3, 17, 64, 1), (8, 40, 96, 5)] {
        let data: Vec<u8> = (0..groups * rank * width / 32 * 34)
            .map(|i| (i * 31 % 251) as u8 & 0x3f)
            .collect();
        let weights = Matrix::new(Format::Q8_0, groups * rank, width, &data).expect("whole blocks");
        let x = values(9, tokens * groups * width);
        for form in [Form::Q8, Form::F32] {
            let product = |backend: &dyn Fn(&Matrix<'_>, &Activations<'_>, &mut [f32])| {
                let mut y = vec![f32::NAN; tokens * groups * rank];
                backend(&weights, &Activations::new(&x, width, form), &mut y);
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let expected = product(&|w, x, y| Scalar.matmul_groups(w, groups, x, y));
            for (level, threads) in levels().iter().flat_map(|(level, _)| [(*level, 1), (*level, 3)]) {
                let cpu = Cpu::new(Some(threads), Some(level)).expect("threads");
                assert_eq!(
                    product(&|w, x, y| cpu.matmul_groups(w, groups, x, y)),
                    expected,
                    "{groups} groups, {level}"
                );
            }
        }
    }
}

/// The largest codes on both sides: no sum of products saturates.
#[test]
fn the_largest_codes_do_not_saturate() {
    for (query, row) in [(6.0, 6.0), (-6.0, 6.0), (6.0, -6.0), (-6.0, -6.0)] {
        let nibble = |x: f32| if x < 0.0 { 0xff } else { 0x77 };
        let mut stored = vec![nibble(row); 64];
        stored.extend([127; 4]);
        let mut asked = vec![nibble(query); 64];
        asked.extend([127; 4]);
        let (mut codes, mut scales) = (vec![0; 128], vec![0.0; 4]);
        unpack_query(&asked, &mut codes, &mut scales);
        let queries = IndexQueries {
            heads: 1,
            dim: 128,
            codes: &codes,
            scales: &scales,
            weights: &[1.0],
        };
        for (level, ops) in levels() {
            let mut out = [f32::NAN];
            (ops.index_scores)(&queries, &stored, &mut out);
            assert_eq!(out[0], (128.0f32 * query * row).max(0.0), "{level}");
        }
    }
}
