//! Logits of the test model against an independent implementation.
//!
//! `reference.f32` holds the logits of every third position of 261 tokens, computed by the `deepseek_v4` model of the Python package
//! transformers 5.23 (torch, `f32`, full forward) on the de-quantised weights of the file that `support::write` makes. `canonical.f32` is the
//! same with 8-bit activations before every quantised matrix and with rounded KV rows. To make them anew, write the file and the tokens with
//! `GOLDEN_DIR=. cargo test -p ds4-model --test it -- --ignored writes_the_model` and run that implementation on them.

use std::path::Path;

use ds4_gguf::LayerSpan;
use ds4_model::Numerics;

use crate::support::{config, empty, graph, run, tokens, write};

const TOKENS: usize = 261;
const STEP: usize = 3;
const VOCABULARY: usize = 96;

/// Theirs and ours, `[positions][vocabulary]`.
fn pairs(golden: &[u8], numerics: Numerics) -> Vec<(Vec<f32>, Vec<f32>)> {
    let slice = graph(numerics);
    let mut kv = empty(&*slice, LayerSpan::full(4));
    let hidden = run(&*slice, &tokens(TOKENS), 100, &mut [&mut kv]);
    let theirs: Vec<f32> = golden
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    assert_eq!(theirs.len(), TOKENS.div_ceil(STEP) * VOCABULARY);
    let ours = (0..TOKENS)
        .step_by(STEP)
        .map(|i| slice.logits(&hidden, i).unwrap());
    theirs
        .chunks_exact(VOCABULARY)
        .map(<[f32]>::to_vec)
        .zip(ours)
        .collect()
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn relative(theirs: &[f32], ours: &[f32]) -> f64 {
    norm(theirs.iter().zip(ours).map(|(a, b)| a - b)) / norm(theirs.iter().copied())
}

fn best(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn gap(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1]
}

/// Kullback-Leibler divergence of our distribution from theirs, in nats.
fn divergence(theirs: &[f32], ours: &[f32]) -> f64 {
    let logs = |x: &[f32]| -> Vec<f64> {
        let most = x.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - most).exp()).sum();
        x.iter().map(|x| f64::from(x - most) - sum.ln()).collect()
    };
    logs(theirs)
        .iter()
        .zip(logs(ours))
        .map(|(p, q)| p.exp() * (p - q))
        .sum()
}

#[test]
fn reference_numerics_meet_an_independent_implementation_at_every_position() {
    let pairs = pairs(include_bytes!("../golden/reference.f32"), Numerics::Reference);
    for (i, (theirs, ours)) in pairs.iter().enumerate() {
        let position = i * STEP;
        assert!(
            relative(theirs, ours) <= 1e-4,
            "position {position}: {}",
            relative(theirs, ours)
        );
        assert!(
            gap(theirs) <= 1e-3 || best(theirs) == best(ours),
            "position {position}: another first token"
        );
    }
}

/// Rounding decides near ties between experts and rows differently in two implementations, so whole positions differ; the bars are those that
/// the emulation meets against itself when its norms are off by one unit in the last place.
#[test]
fn canonical_numerics_stay_near_an_independent_emulation() {
    let pairs = pairs(include_bytes!("../golden/canonical.f32"), Numerics::Canonical);
    let (theirs, ours) = &pairs[0];
    assert!(
        relative(theirs, ours) <= 5e-2,
        "position 0: {}",
        relative(theirs, ours)
    );
    let equal = pairs
        .iter()
        .filter(|(theirs, ours)| best(theirs) == best(ours))
        .count();
    assert!(
        equal * 100 >= pairs.len() * 85,
        "{equal} of {} first tokens",
        pairs.len()
    );
    let mean = pairs
        .iter()
        .map(|(theirs, ours)| divergence(theirs, ours))
        .sum::<f64>()
        / pairs.len() as f64;
    assert!(mean <= 0.06, "mean divergence {mean}");
}

#[test]
fn the_two_numerics_differ() {
    let pairs = pairs(include_bytes!("../golden/reference.f32"), Numerics::Canonical);
    assert!(
        pairs.iter().all(|(theirs, ours)| relative(theirs, ours) > 1e-4),
        "the goldens cannot tell them apart"
    );
}

#[test]
#[ignore = "writes the inputs of the golden files to GOLDEN_DIR"]
fn writes_the_model_and_the_tokens() {
    let folder = std::env::var("GOLDEN_DIR").unwrap();
    write(&Path::new(&folder).join("model.gguf"), &config());
    std::fs::write(
        Path::new(&folder).join("tokens.json"),
        format!("{:?}", tokens(TOKENS)),
    )
    .unwrap();
}
