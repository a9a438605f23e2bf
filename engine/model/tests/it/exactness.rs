//! Logits are a function of the tokens alone: not of chunks, splits or handoffs.

use ds4_gguf::LayerSpan;
use ds4_kernels::Scalar;
use ds4_kernels_cpu::{Cpu, Level};
use ds4_model::{CompleteKv, Hidden, Kv, KvKind, ModelSlice, Numerics};

use crate::support::{decode, empty, graph, load, load_on, run, tokens, transfer};

const BOTH: [Numerics; 2] = [Numerics::Canonical, Numerics::Reference];
/// Long enough for two rows of ratio 128 and for many more ratio-4 rows than the indexer keeps.
const LENGTH: usize = 261;

const fn span(first: usize, last: usize) -> LayerSpan {
    LayerSpan {
        first,
        last,
        head: last == 3,
    }
}

fn bits(slice: &dyn ModelSlice, hidden: &Hidden) -> Vec<u32> {
    let rows = (0..hidden.tokens()).map(|i| slice.logits(hidden, i).unwrap());
    rows.flatten().map(f32::to_bits).collect()
}

fn plain(numerics: Numerics, tokens: &[u32]) -> (Vec<u32>, Kv) {
    let slice = graph(numerics);
    let mut kv = empty(&*slice, span(0, 3));
    let hidden = run(&*slice, tokens, tokens.len(), &mut [&mut kv]);
    (bits(&*slice, &hidden), kv)
}

#[test]
fn every_chunk_size_gives_the_same_logits_and_the_same_kv() {
    for numerics in BOTH {
        let (slice, tokens) = (graph(numerics), tokens(LENGTH));
        let (expected, rows) = plain(numerics, &tokens);
        assert!(expected.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        for chunk in [1, 3, 4, 5, 64, 127, 128, 129] {
            let mut kv = empty(&*slice, span(0, 3));
            let hidden = run(&*slice, &tokens, chunk, &mut [&mut kv]);
            assert!(
                bits(&*slice, &hidden) == expected,
                "{numerics}: chunk {chunk} changed the logits"
            );
            assert!(kv == rows, "{numerics}: chunk {chunk} changed the KV");
        }
    }
}

#[test]
fn every_split_gives_the_same_logits() {
    let splits: [&[LayerSpan]; 4] = [
        &[span(0, 0), span(1, 3)],
        &[span(0, 1), span(2, 3)],
        &[span(0, 2), span(3, 3)],
        &[span(0, 0), span(1, 1), span(2, 2), span(3, 3)],
    ];
    for numerics in BOTH {
        let (slice, tokens) = (graph(numerics), tokens(LENGTH));
        let (expected, rows) = plain(numerics, &tokens);
        for spans in splits {
            let mut kvs: Vec<Kv> = spans.iter().map(|span| empty(&*slice, *span)).collect();
            let hidden = run(&*slice, &tokens, 37, &mut kvs.iter_mut().collect::<Vec<_>>());
            assert!(
                bits(&*slice, &hidden) == expected,
                "{numerics}: {spans:?} changed the logits"
            );
            let complete = CompleteKv::assemble(&slice.info().layout, kvs).unwrap();
            assert!(*complete.kv() == rows, "{numerics}: {spans:?} changed the KV");
        }
    }
}

#[test]
fn threads_and_vectors_change_no_bit() {
    let tokens = tokens(140);
    for numerics in BOTH {
        let (expected, _) = plain(numerics, &tokens);
        let whole = LayerSpan::full(4);
        let others: [Box<dyn ModelSlice>; 3] = [
            Box::new(load_on(whole, numerics, Scalar)),
            Box::new(load_on(whole, numerics, Cpu::new(Some(1), None).unwrap())),
            Box::new(load_on(
                whole,
                numerics,
                Cpu::new(Some(3), Some(Level::Scalar)).unwrap(),
            )),
        ];
        for slice in others {
            let mut kv = empty(&*slice, whole);
            let hidden = run(&*slice, &tokens, 70, &mut [&mut kv]);
            assert!(
                bits(&*slice, &hidden) == expected,
                "{numerics}: {} differs",
                slice.info().backend
            );
        }
    }
}

#[test]
fn slices_that_load_only_their_layers_compute_what_the_whole_model_computes() {
    let tokens = tokens(140);
    let (expected, _) = plain(Numerics::Canonical, &tokens);
    let (early, late) = (
        load(span(0, 1), Numerics::Canonical),
        load(span(2, 3), Numerics::Canonical),
    );
    let (mut first, mut second) = (empty(&early, span(0, 1)), empty(&late, span(2, 3)));
    let mut hidden = early.embed(&tokens).unwrap();
    early.forward(&tokens, &mut hidden, &mut first).unwrap();
    late.forward(&tokens, &mut hidden, &mut second).unwrap();
    assert!(bits(&late, &hidden) == expected);
    assert!(late.embed(&tokens).is_err() && early.logits(&hidden, 0).is_err());
}

#[test]
fn decoding_after_a_handoff_is_decoding_without_one() {
    for numerics in BOTH {
        let slice = graph(numerics);
        for length in [1, 3, 4, 5, 8, 9, 10, 127, 128, 129, 132, 260] {
            let prompt = tokens(length);
            let (_, mut kv) = plain(numerics, &prompt);
            let (mut early, mut late) = (empty(&*slice, span(0, 1)), empty(&*slice, span(2, 3)));
            run(&*slice, &prompt, 64, &mut [&mut early, &mut late]);
            let received = transfer(&early, 7, |_, _, _, _| {});
            let mut complete = CompleteKv::assemble(&slice.info().layout, vec![late, received]).unwrap();
            assert!(
                *complete.kv() == kv,
                "{numerics}, {length} tokens: other rows arrived"
            );
            let expected = decode(&*slice, &mut kv, 11, 12);
            assert_eq!(
                decode(&*slice, complete.kv_mut(), 11, 12),
                expected,
                "{numerics}, {length} tokens"
            );
        }
    }
}

#[test]
fn a_perturbed_row_of_any_kind_changes_the_logits() {
    for numerics in BOTH {
        let slice = graph(numerics);
        let prompt = tokens(135);
        let (_, kv) = plain(numerics, &prompt);
        let expected = decode(&*slice, &mut kv.clone(), 11, 6);
        for (layer, kind) in [
            (3, KvKind::Window),
            (1, KvKind::Compressed),
            (0, KvKind::Compressed),
            (2, KvKind::Indexer),
            (0, KvKind::CompressorState),
            (2, KvKind::IndexerState),
        ] {
            let mut changed = 0;
            let mut spoiled = transfer(&kv, 1, |at, of, row, bytes| {
                // The last row alone; of rows that the indexer picks from, or that only sway its picks, all.
                let picked = kind == KvKind::IndexerState || (layer == 0 && kind == KvKind::Compressed);
                if at == layer && of == kind && (picked || row + 1 == kv.rows(layer, kind).end) {
                    spoil(numerics, kind, bytes);
                    changed += 1;
                }
            });
            assert!(changed > 0, "{numerics}: layer {layer} {kind} has rows");
            let found = decode(&*slice, &mut spoiled, 11, 6);
            assert!(
                found.1 != expected.1,
                "{numerics}: layer {layer} {kind} is not read"
            );
        }
    }
}

/// Another row that is still one the model could have made: signs change, magnitudes stay.
fn spoil(numerics: Numerics, kind: KvKind, bytes: &mut [u8]) {
    match (numerics, kind) {
        (Numerics::Canonical, KvKind::Window | KvKind::Compressed) => {
            bytes[..64].iter_mut().for_each(|code| *code ^= 0x80);
        }
        (Numerics::Canonical, KvKind::Indexer) => bytes[..16].iter_mut().for_each(|pair| *pair ^= 0x88),
        _ => bytes.chunks_exact_mut(4).for_each(|value| value[3] ^= 0x80),
    }
}

#[test]
fn the_window_keeps_what_the_next_token_sees_and_states_keep_the_open_groups() {
    let slice = graph(Numerics::Canonical);
    for length in [1, 8, 9, 130] {
        let (_, kv) = plain(Numerics::Canonical, &tokens(length));
        let length = length as u64;
        for layer in 0..4 {
            for kind in slice.info().layout.kinds(layer) {
                assert_eq!(
                    kv.rows(layer, *kind),
                    slice.info().layout.expected_rows(layer, *kind, length),
                    "{layer} {kind}"
                );
            }
        }
        assert_eq!(kv.rows(3, KvKind::Window), length.saturating_sub(8)..length);
    }
    let (_, kv) = plain(Numerics::Canonical, &tokens(130));
    assert_eq!(kv.rows(1, KvKind::CompressorState), 128..130);
    assert_eq!(
        kv.rows(0, KvKind::IndexerState),
        124..130,
        "the previous group and the open one"
    );
    assert_eq!(kv.rows(0, KvKind::Compressed), 0..32);
}
