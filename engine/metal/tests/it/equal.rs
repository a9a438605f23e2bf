//! The device computes what the CPU computes, bit for bit.

use std::sync::Arc;

use ds4_gguf::LayerSpan;
use ds4_model::{ModelSlice, Part};

use crate::model::{decode, empty, run};
use crate::support::{Model, Turn, assert_bits, tokens, turn};

/// Prefill in chunks, then some tokens one by one, on both back ends.
fn check(model: &Model, count: usize, chunk: usize) {
    check_on(&turn(), model, count, chunk);
}

fn check_on(turn: &Turn, model: &Model, count: usize, chunk: usize) {
    let span = LayerSpan::full(model.cpu(LayerSpan::full(1)).info().config.n_layer);
    let (cpu, metal) = (model.cpu(span), model.metal(span, turn));
    let tokens = tokens(count, cpu.info().config.n_vocab);
    let (mut expected, mut found) = (empty(&cpu, span), empty(&metal, span));
    let a = run(&cpu, &tokens, count, &mut [&mut expected]);
    let b = run(&metal, &tokens, chunk, &mut [&mut found]);
    assert_bits("streams", a.as_slice(), b.as_slice());
    assert_eq!(expected, found, "KV");
    assert_bits(
        "logits",
        &cpu.logits(&a, count - 1).unwrap(),
        &metal.logits(&b, count - 1).unwrap(),
    );
    assert_eq!(
        decode(&cpu, &mut expected, 1, 3),
        decode(&metal, &mut found, 1, 3),
        "decoded tokens and their logits"
    );
    assert_eq!(expected, found, "KV after decode");
}

#[test]
fn the_model_with_every_kind_of_layer_has_the_bits_of_the_cpu() {
    check(&Model::golden(), 130, 130);
}

/// Launches by `simdgroup_matrix`: of matrices that are alone, and of both products of the experts.
fn by_matrices(turn: &Turn) -> [usize; 3] {
    let of = |part: &str| turn.emulator.launches(part);
    let experts = ["gate_up", "down"].map(|kernel| {
        let of_format = |format| of(&format!("{kernel}_{format}_tiles"));
        ["q8_0", "q2_k", "q4_k", "iq2_xxs", "mxfp4"]
            .into_iter()
            .map(of_format)
            .sum()
    });
    [of("tiles_"), experts[0], experts[1]]
}

#[test]
fn prompts_go_through_matrices_where_the_device_has_them_and_give_the_same_bits_where_not() {
    let mut turn = turn();
    let before = by_matrices(&turn);
    check_on(&turn, &Model::golden(), 40, 33);
    let with = by_matrices(&turn);
    assert!(
        with.iter().zip(before).all(|(with, before)| *with > before),
        "{with:?}"
    );
    turn.device = Arc::new(turn.device.plain());
    check_on(&turn, &Model::golden(), 40, 33);
    assert_eq!(by_matrices(&turn), with);
}

#[test]
fn chunks_of_any_length_have_the_bits_of_the_cpu() {
    check(&Model::golden(), 26, 7);
    check(&Model::golden(), 5, 1);
}

#[test]
fn a_synthetic_model_has_the_bits_of_the_cpu() {
    check(&Model::micro(&[]), 20, 17);
}

#[test]
fn results_do_not_depend_on_the_order_in_which_threads_run() {
    let turn = turn();
    let model = Model::golden();
    let span = LayerSpan::full(4);
    let metal = model.metal(span, &turn);
    let tokens = tokens(12, 96);
    let streams = |order: u64| {
        turn.emulator.order(order);
        run(&metal, &tokens, 12, &mut [&mut empty(&metal, span)])
    };
    let first = streams(0);
    for order in [1, 3, 99] {
        assert_bits("streams", first.as_slice(), streams(order).as_slice());
    }
    // Nor on what the device makes of numbers below the normal ones.
    turn.emulator.flush_subnormals(true);
    let flushed = streams(0);
    turn.emulator.flush_subnormals(false);
    assert_bits(
        "streams without subnormal numbers",
        first.as_slice(),
        flushed.as_slice(),
    );
}

#[test]
fn sessions_in_one_pass_have_the_bits_of_each_alone() {
    let turn = turn();
    let model = Model::golden();
    let span = LayerSpan::full(4);
    let metal = model.metal(span, &turn);
    let sessions: Vec<Vec<u32>> = [(3, 9), (1, 30), (5, 1)]
        .map(|(skip, count)| tokens(40, 96)[skip..skip + count].to_vec())
        .into();
    let next = [7u32, 8, 9];
    let mut alone = Vec::new();
    let mut kvs = Vec::new();
    for (tokens, next) in sessions.iter().zip(next) {
        let mut kv = empty(&metal, span);
        run(&metal, tokens, 30, &mut [&mut kv]);
        kvs.push(kv.clone());
        alone.extend_from_slice(run(&metal, &[next], 1, &mut [&mut kv]).as_slice());
    }
    let mut hidden = metal.embed(&next).unwrap();
    let mut parts: Vec<Part<'_>> = kvs
        .iter_mut()
        .zip(next.chunks(1))
        .map(|(kv, tokens)| Part { tokens, kv })
        .collect();
    metal.forward_batch(&mut parts, &mut hidden).unwrap();
    assert_bits("streams", &alone, hidden.as_slice());
}
