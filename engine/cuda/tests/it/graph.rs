//! Decode by graphs has the bits of launches one by one, makes few graphs, and fails where the driver refuses one.

use ds4_gguf::LayerSpan;
use ds4_model::{Kv, ModelError, ModelSlice, Part};
use ds4_model_cuda::CudaSlice;

use crate::model::{decode, empty, run};
use crate::support::{Model, Turn, assert_bits, tokens, turn};

/// Layers of the model, two of which choose rows once there are more than five groups of four tokens.
const LAYERS: usize = 4;
const FULL: LayerSpan = LayerSpan::full(LAYERS);

/// The model by graphs and by launches one by one.
fn both(model: &Model, turn: &Turn) -> (CudaSlice, CudaSlice) {
    (model.cuda(FULL, turn), model.plain(FULL, turn))
}

/// A session that the CPU has begun.
pub fn begun(model: &Model, skip: usize, count: usize) -> Kv {
    let cpu = model.cpu(FULL);
    let mut kv = empty(&cpu, FULL);
    run(&cpu, &tokens(skip + count, 96)[skip..], count, &mut [&mut kv]);
    kv
}

/// The streams of one more token of each session.
pub fn step(slice: &CudaSlice, ids: &[u32], kvs: &mut [Kv]) -> Result<Vec<f32>, ModelError> {
    let mut hidden = slice.embed(ids)?;
    let mut parts: Vec<Part<'_>> = kvs
        .iter_mut()
        .zip(ids.chunks(1))
        .map(|(kv, tokens)| Part { tokens, kv })
        .collect();
    slice.forward_batch(&mut parts, &mut hidden)?;
    Ok(hidden.as_slice().to_vec())
}

#[test]
fn a_session_from_its_first_token_has_the_bits_of_plain_launches_and_two_graphs_where_rows_are_chosen() {
    let turn = turn();
    let (graphs, plain) = both(&Model::golden(), &turn);
    let (mut found, mut expected) = (empty(&graphs, FULL), empty(&plain, FULL));
    let before = turn.emulator.graphs();
    let b = decode(&graphs, &mut found, 1, 25);
    let after = turn.emulator.graphs();
    assert_eq!(decode(&plain, &mut expected, 1, 25), b, "tokens and logits");
    assert_eq!(found, expected, "KV");
    assert_eq!(turn.emulator.graphs(), after, "plain launches make no graphs");
    assert_eq!(after.launched - before.launched, 25 * LAYERS);
    assert_eq!(after.instantiated - before.instantiated, LAYERS + 2);
}

#[test]
fn the_end_of_a_group_of_128_makes_no_other_graph() {
    let turn = turn();
    let model = Model::golden();
    let (graphs, plain) = both(&model, &turn);
    let mut expected = begun(&model, 0, 125);
    let mut found = expected.clone();
    let before = turn.emulator.graphs();
    let b = decode(&graphs, &mut found, 1, 6);
    let after = turn.emulator.graphs();
    assert_eq!(decode(&plain, &mut expected, 1, 6), b, "tokens and logits");
    assert_eq!(found, expected, "KV");
    assert_eq!(after.instantiated - before.instantiated, LAYERS);
    // Weights, scratch and most sizes stay: of a layer's dozens of nodes a few change.
    let replays = 5 * LAYERS;
    let changed = after.changed - before.changed;
    assert!(changed <= 6 * replays, "{changed} nodes in {replays} replays");
}

#[test]
fn sessions_that_come_and_go_have_the_bits_of_plain_launches() {
    let turn = turn();
    let model = Model::golden();
    let (graphs, plain) = both(&model, &turn);
    let starts = [(3, 9), (1, 25), (5, 26)];
    let mut expected = starts.map(|(skip, count)| begun(&model, skip, count));
    let mut found = expected.clone();
    let before = turn.emulator.graphs().instantiated;
    // All, the first, the last, two of them, all: at positions that complete groups and such that do not.
    for (round, range) in [0..3, 0..1, 2..3, 1..3, 0..3, 0..3].into_iter().enumerate() {
        let ids = &[7 + round as u32, 8, 9][range.clone()];
        let a = step(&plain, ids, &mut expected[range.clone()]).unwrap();
        let b = step(&graphs, ids, &mut found[range.clone()]).unwrap();
        assert_bits(&format!("streams of round {round}"), &a, &b);
    }
    assert_eq!(found, expected, "KV");
    // One, two and three sessions; one session before the indexer chooses and one after.
    let made = turn.emulator.graphs().instantiated - before;
    assert_eq!(made, 3 * LAYERS + 2);
}

#[test]
fn a_graph_that_the_driver_refuses_is_an_error_and_the_session_stays_as_it_was() {
    let turn = turn();
    let model = Model::golden();
    let (graphs, plain) = both(&model, &turn);
    let mut expected = [begun(&model, 0, 5)];
    let mut found = expected.clone();
    for call in ["cuGraphInstantiate", "cuGraphExecKernelNodeSetParams"] {
        turn.emulator.fail(call);
        let refused = step(&graphs, &[7], &mut found).unwrap_err();
        let ModelError::Device { fatal, source, .. } = &refused else {
            panic!("expected the device's error, found {refused}")
        };
        assert!(!fatal && source.to_string().contains(call), "{source}");
        assert_eq!(found, expected, "{call}");
        let a = step(&plain, &[7], &mut expected).unwrap();
        let b = step(&graphs, &[7], &mut found).unwrap();
        assert_bits(call, &a, &b);
    }
}
