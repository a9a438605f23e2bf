//! Sessions whose layers were prefilled by one back end and are decoded by the other.

use ds4_gguf::LayerSpan;
use ds4_model::{CompleteKv, ModelSlice};

use crate::model::{decode, empty, run, transfer};
use crate::support::{Model, tokens, turn};

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
fn a_cpu_stage_hands_over_to_a_metal_output() {
    let turn = turn();
    let model = Model::golden();
    check(
        &model,
        &model.cpu(LayerSpan::full(4)),
        &model.metal(LayerSpan::full(4), &turn),
    );
}

#[test]
fn a_metal_stage_hands_over_to_a_cpu_output() {
    let turn = turn();
    let model = Model::golden();
    check(
        &model,
        &model.metal(
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
