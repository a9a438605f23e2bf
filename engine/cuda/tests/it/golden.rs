//! Logits of the device against those of independent implementations: the files and the bars that the CPU back end's tests have, over the first
//! positions.

use ds4_gguf::LayerSpan;
use ds4_model::ModelSlice;

use crate::model::{empty, run, tokens};
use crate::support::{Model, turn};

fn best(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn relative(theirs: &[f32], ours: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut theirs.iter().zip(ours).map(|(a, b)| a - b)) / norm(&mut theirs.iter().copied())
}

/// Computes `ids` and compares every `step`-th position with `golden`, which has those of more tokens.
fn check(model: &Model, ids: &[u32], step: usize, golden: &[u8]) {
    let turn = turn();
    let layers = model.cpu(LayerSpan::full(1)).info().config.n_layer;
    let span = LayerSpan::full(layers);
    let cuda = model.cuda(span, &turn);
    let hidden = run(&cuda, ids, ids.len(), &mut [&mut empty(&cuda, span)]);
    let golden: Vec<f32> = golden
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let vocabulary = cuda.info().config.n_vocab;
    let positions: Vec<usize> = (0..ids.len()).step_by(step).collect();
    let ours = cuda.logits_batch(&hidden, &positions).unwrap();
    let pairs = || golden.chunks_exact(vocabulary).zip(ours.chunks_exact(vocabulary));
    let (theirs, first) = pairs().next().unwrap();
    assert!(
        relative(theirs, first) <= 5e-2,
        "position 0: {}",
        relative(theirs, first)
    );
    let equal = pairs()
        .filter(|(theirs, ours)| best(theirs) == best(ours))
        .count();
    assert!(
        equal * 100 >= positions.len() * 85,
        "{equal} of {} first tokens",
        positions.len()
    );
}

/// `engine/model/tests/it/golden.rs` describes the file and the model.
#[test]
fn logits_of_the_test_model_stay_near_an_independent_emulation() {
    let golden = include_bytes!("../../../model/tests/golden/canonical.f32");
    check(&Model::golden(), &tokens(58), 3, golden);
}

/// `cargo xtask oracle --golden` makes the file: an emulation of the served numerics in transformers, every tenth of 300 positions.
#[test]
fn logits_of_the_micro_preset_stay_near_an_independent_emulation() {
    let mut state = 1234_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 8) % (280 - 11)
    };
    let ids: Vec<u32> = (0..101).map(|_| next()).collect();
    let golden = include_bytes!("../../../../tests/oracle/golden/micro.canonical.f32");
    check(&Model::micro(&[]), &ids, 10, golden);
}
