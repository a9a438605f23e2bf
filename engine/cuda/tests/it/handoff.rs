//! Sessions whose layers were prefilled by one back end and are decoded by the other.

use ds4_gguf::LayerSpan;
use ds4_model::{CompleteKv, Kv, ModelSlice};

use crate::model::{decode, empty, run, transfer};
use crate::support::{Model, Turn, assert_bits, tokens, turn};

/// Layers 0 and 1 by `stage`, the others by `output`, which then decodes; compared with the CPU alone.
fn check(model: &Model, stage: &dyn ModelSlice, output: &dyn ModelSlice) {
    let full = LayerSpan::full(4);
    let plain = model.cpu(full);
    let tokens = tokens(30, 96);
    let mut expected = empty(&plain, full);
    run(&plain, &tokens, 30, &mut [&mut expected]);
    let early = LayerSpan {
        first: 0,
        last: 1,
        head: false,
    };
    let late = LayerSpan {
        first: 2,
        last: 3,
        head: true,
    };
    let (mut sent, mut own) = (empty(stage, early), empty(output, late));
    for chunk in tokens.chunks(11) {
        let mut hidden = stage.embed(chunk).unwrap();
        stage.forward(chunk, &mut hidden, &mut sent).unwrap();
        output.forward(chunk, &mut hidden, &mut own).unwrap();
    }
    let received = transfer(&sent, 5, |_, _, _, _| {});
    let mut complete = CompleteKv::assemble(&output.info().layout, vec![received, own]).unwrap();
    assert_eq!(*complete.kv(), expected, "KV");
    assert_eq!(
        decode(output, complete.kv_mut(), 3, 4),
        decode(&plain, &mut expected, 3, 4),
        "decoded tokens"
    );
}

#[test]
fn a_cpu_stage_hands_over_to_a_cuda_output() {
    let turn = turn();
    let model = Model::golden();
    check(
        &model,
        &model.cpu(LayerSpan::full(4)),
        &model.cuda(LayerSpan::full(4), &turn),
    );
}

#[test]
fn a_cuda_stage_hands_over_to_a_cpu_output() {
    let turn = turn();
    let model = Model::golden();
    check(
        &model,
        &model.cuda(
            LayerSpan {
                first: 0,
                last: 1,
                head: false,
            },
            &turn,
        ),
        &model.cpu(LayerSpan::full(4)),
    );
}

/// Bits of [`ds4_emu::Emulator::late`].
const COMPUTING: u64 = 1;
const COPYING: u64 = 2;
/// Tokens of a pass that sends the rows of each layer when it has them.
const LONG: usize = 65;

/// A pass whose layers' rows leave one by one, then one whose rows leave together, with the work on some streams done late: the KV.
fn rows(model: &Model, turn: &Turn, late: u64, expected: &[f32]) -> Kv {
    let full = LayerSpan::full(4);
    let cuda = model.cuda(full, turn);
    let mut kv = empty(&cuda, full);
    turn.emulator.late(late);
    let streams = run(&cuda, &tokens(LONG + 3, 96), LONG, &mut [&mut kv]);
    turn.emulator.late(0);
    assert_bits("streams", expected, streams.as_slice());
    kv
}

#[test]
fn rows_that_leave_beside_the_computing_are_those_of_the_cpu() {
    let turn = turn();
    let (model, full) = (Model::golden(), LayerSpan::full(4));
    let cpu = model.cpu(full);
    let mut expected = empty(&cpu, full);
    let streams = run(&cpu, &tokens(LONG + 3, 96), LONG, &mut [&mut expected]);
    for late in [COMPUTING, COMPUTING | COPYING] {
        let found = rows(&model, &turn, late, streams.as_slice());
        assert_eq!(found, expected, "streams {late:#b} late");
    }
    // The same computing; only the copies do not wait for it.
    turn.emulator.deaf(true);
    let found = rows(&model, &turn, COMPUTING, streams.as_slice());
    assert_ne!(found, expected, "rows that were copied before they were there");
}
