//! Sessions beside each other in one pass: each gets what it would get alone.

use ds4_gguf::LayerSpan;
use ds4_model::{Hidden, Kv, ModelError, ModelSlice, Numerics, Part};

use crate::support::{empty, graph, run, tokens};

/// Sessions of these lengths, each with a timeline of its own: short of a window, at a group's end, past the indexer's top-k.
const LENGTHS: [usize; 8] = [1, 3, 8, 40, 127, 128, 129, 200];

fn prompt(i: usize) -> Vec<u32> {
    tokens(LENGTHS[i] + 10 * i).split_off(10 * i)
}

fn prefilled(slice: &dyn ModelSlice, i: usize) -> Kv {
    let mut kv = empty(slice, LayerSpan::full(4));
    run(slice, &prompt(i), 64, &mut [&mut kv]);
    kv
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// One step of every session, in one pass or each alone; the logits' bits and the KV.
fn step(slice: &dyn ModelSlice, kvs: &[Kv], steps: &[&[u32]], together: bool) -> (Vec<Vec<u32>>, Vec<Kv>) {
    let mut kvs = kvs.to_vec();
    let all: Vec<u32> = steps.concat();
    let ends: Vec<usize> = steps
        .iter()
        .scan(0, |end, step| {
            *end += step.len();
            Some(*end - 1)
        })
        .collect();
    if together {
        let mut hidden = slice.embed(&all).unwrap();
        let mut parts: Vec<Part<'_>> = steps
            .iter()
            .zip(&mut kvs)
            .map(|(tokens, kv)| Part { tokens, kv })
            .collect();
        slice.forward_batch(&mut parts, &mut hidden).unwrap();
        let logits = slice.logits_batch(&hidden, &ends).unwrap();
        return (
            logits.chunks(slice.info().config.n_vocab).map(bits).collect(),
            kvs,
        );
    }
    let alone = steps.iter().zip(&mut kvs).map(|(tokens, kv)| {
        let mut hidden = slice.embed(tokens).unwrap();
        slice.forward(tokens, &mut hidden, kv).unwrap();
        bits(&slice.logits(&hidden, tokens.len() - 1).unwrap())
    });
    (alone.collect(), kvs)
}

#[test]
fn sessions_decode_together_as_they_do_alone() {
    for numerics in [Numerics::Canonical, Numerics::Reference] {
        let slice = graph(numerics);
        let kvs: Vec<Kv> = (0..LENGTHS.len()).map(|i| prefilled(&*slice, i)).collect();
        for count in [1, 3, 8] {
            let mut alone = kvs[..count].to_vec();
            let mut together = alone.clone();
            for round in 0..6u32 {
                let next: Vec<[u32; 1]> = (0..count as u32).map(|i| [(7 * i + 13 * round) % 96]).collect();
                let steps: Vec<&[u32]> = next.iter().map(<[u32; 1]>::as_slice).collect();
                let (expected, kv) = step(&*slice, &alone, &steps, false);
                let (found, same) = step(&*slice, &together, &steps, true);
                assert!(
                    found == expected,
                    "{numerics}: {count} sessions, round {round}: other logits"
                );
                assert!(
                    same == kv,
                    "{numerics}: {count} sessions, round {round}: other KV"
                );
                (alone, together) = (kv, same);
            }
        }
    }
}

#[test]
fn a_prompt_may_be_prefilled_while_others_decode() {
    let slice = graph(Numerics::Canonical);
    let kvs: Vec<Kv> = (0..3).map(|i| prefilled(&*slice, 7 - 3 * i)).collect();
    let long = tokens(300);
    let steps: [&[u32]; 3] = [&[5], &long, &[9, 11]];
    let (expected, kv) = step(&*slice, &kvs, &steps, false);
    let (found, same) = step(&*slice, &kvs, &steps, true);
    assert!(found == expected && same == kv);
    // More tokens than go through the layers at once.
    let longer = tokens(700);
    let steps: [&[u32]; 3] = [&[5], &longer, &[9, 11]];
    assert!(step(&*slice, &kvs, &steps, false) == step(&*slice, &kvs, &steps, true));
}

#[test]
fn parts_that_do_not_fit_change_nothing() {
    let slice = graph(Numerics::Canonical);
    let full = prefilled(&*slice, 2);
    let (mut first, mut second) = (
        full.clone(),
        empty(
            &*slice,
            LayerSpan {
                first: 0,
                last: 1,
                head: false,
            },
        ),
    );
    let mut hidden = slice.embed(&[1, 2]).unwrap();
    let before = hidden.clone();
    let mut parts = [
        Part {
            tokens: &[1],
            kv: &mut first,
        },
        Part {
            tokens: &[2],
            kv: &mut second,
        },
    ];
    let error = slice.forward_batch(&mut parts, &mut hidden).unwrap_err();
    assert!(matches!(error, ModelError::Span { .. }), "{error}");
    let mut short = Hidden::from_vec(before.width(), before.token(0).to_vec()).unwrap();
    let mut parts = [Part {
        tokens: &[1, 2],
        kv: &mut first,
    }];
    let error = slice.forward_batch(&mut parts, &mut short).unwrap_err();
    assert!(matches!(error, ModelError::Hidden { tokens: 2, .. }), "{error}");
    assert!(hidden == before && first == full);
    assert!(
        slice
            .forward_batch(&mut [], &mut Hidden::from_vec(before.width(), vec![]).unwrap())
            .is_ok()
    );
}
