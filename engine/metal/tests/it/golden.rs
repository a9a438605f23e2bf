//! Logits of the device against those of an independent implementation, which `engine/model/tests/it/golden.rs` describes: the same file, the same
//! bars, over the first positions.

use ds4_gguf::LayerSpan;
use ds4_model::ModelSlice;

use crate::model::{empty, run, tokens};
use crate::support::{Model, turn};

/// Positions computed here; the file has every third one of more.
const TOKENS: usize = 31;
const STEP: usize = 3;

fn best(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn relative(theirs: &[f32], ours: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut theirs.iter().zip(ours).map(|(a, b)| a - b)) / norm(&mut theirs.iter().copied())
}

#[test]
fn logits_stay_near_an_independent_emulation() {
    let turn = turn();
    let model = Model::golden();
    let metal = model.metal(LayerSpan::full(4), &turn);
    let hidden = run(
        &metal,
        &tokens(TOKENS),
        TOKENS,
        &mut [&mut empty(&metal, LayerSpan::full(4))],
    );
    let golden: Vec<f32> = include_bytes!("../../../model/tests/golden/canonical.f32")
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let vocabulary = metal.info().config.n_vocab;
    let positions: Vec<usize> = (0..TOKENS).step_by(STEP).collect();
    let ours = metal.logits_batch(&hidden, &positions).unwrap();
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
