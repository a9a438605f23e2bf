//! How weights and what else a model takes reach the device, and what is refused before they do.

use std::sync::Arc;

use ds4_gguf::LayerSpan;
use ds4_kernels_cuda::{Device, Way};
use ds4_model::{ModelError, ModelSlice};
use ds4_model_cuda::{CudaSlice, Decode};

use crate::graph::{begun, step};
use crate::model::{decode, empty, run};
use crate::support::{Model, tokens, turn};

const FULL: LayerSpan = LayerSpan::full(4);

/// Streams of some tokens, which need all weights.
fn streams(slice: &dyn ModelSlice) -> Vec<u32> {
    let streams = run(slice, &tokens(9, 96), 9, &mut [&mut empty(slice, FULL)]);
    streams.as_slice().iter().map(|x| x.to_bits()).collect()
}

/// What was refused: the text, once it is known that the process may live on.
fn refused(loaded: Result<CudaSlice, ModelError>) -> String {
    match loaded.unwrap_err() {
        ModelError::Device {
            fatal: false, source, ..
        } => source.to_string(),
        other => panic!("expected the device's error, found {other}"),
    }
}

/// `kernels/cuda/tests` has the waits that this takes, each left out once.
#[test]
fn weights_are_the_files_however_late_they_come() {
    let turn = turn();
    let model = Model::golden();
    turn.emulator.late(u64::MAX);
    let cuda = model.plain(FULL, &turn);
    turn.emulator.late(0);
    assert_eq!(streams(&cuda), streams(&model.cpu(FULL)));
}

#[test]
fn progress_is_of_bytes_that_are_there_from_none_to_all() {
    let turn = turn();
    let model = Model::golden();
    let mut told = Vec::new();
    let cuda = model
        .load(FULL, &turn.device, Decode::Launches, &mut |done, total| {
            told.push((done, total))
        })
        .unwrap();
    let total = cuda.info().weight_bytes;
    assert_eq!((told[0], *told.last().unwrap()), ((0, total), (total, total)));
    assert!(told.iter().all(|(_, of)| *of == total));
    assert!(told.is_sorted());
    // A tensor at most, or a piece of one.
    let most = told.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap();
    assert!(
        told.len() > 50 && most <= total / 2,
        "{} reports, {most} of {total} bytes at once",
        told.len()
    );
}

#[test]
fn without_page_locked_memory_the_weights_come_another_way_and_that_is_told() {
    let turn = turn();
    let model = Model::golden();
    let staged = model.plain(FULL, &turn);
    assert!(matches!(staged.way(), Way::Staged(_)), "{}", staged.way());
    turn.emulator.lockable(turn.emulator.locked());
    let direct = model.plain(FULL, &turn);
    assert!(matches!(direct.way(), Way::Refused(..)), "{}", direct.way());
    turn.emulator.lockable(usize::MAX);
    assert_eq!(streams(&direct), streams(&staged));
}

#[test]
fn a_driver_without_graphs_is_refused_before_anything_is_copied_and_serves_without_them() {
    let turn = turn();
    let model = Model::golden();
    let before = turn.device.memory().unwrap();
    turn.emulator.lacks(Some("cuGraphInstantiate"));
    let mut told = Vec::new();
    let loaded = model.load(FULL, &turn.device, Decode::Graphs, &mut |done, _| told.push(done));
    let said = refused(loaded);
    assert!(
        said.contains("NOT_SUPPORTED") && said.contains("--cuda-graph off"),
        "{said}"
    );
    assert_eq!((turn.device.memory().unwrap(), told), (before, vec![]));
    let (cpu, plain) = (model.cpu(FULL), model.plain(FULL, &turn));
    assert_eq!(
        decode(&cpu, &mut empty(&cpu, FULL), 1, 3),
        decode(&plain, &mut empty(&plain, FULL), 1, 3)
    );
}

#[test]
fn graphs_are_counted_before_the_load_by_what_they_take() {
    let turn = turn();
    let model = Model::golden();
    let weights = model.plain(FULL, &turn).info().weight_bytes;
    let before = turn.emulator.graphs();
    turn.emulator.bytes_of_node(500);
    model.cuda(FULL, &turn);
    let trial = turn.emulator.graphs();
    assert_eq!(trial.instantiated - before.instantiated, 4, "one for each layer");
    // Eight for each layer may come to be kept.
    let graphs = 8 * 4 * trial.largest as u64 * 500;
    let scratch = 16 << 20;
    let (free, total) = turn.device.memory().unwrap();
    let with = |room: u64| {
        turn.emulator.memory((total - free + room) as usize);
        let loaded = model.try_cuda(FULL, &turn);
        turn.emulator.memory(total as usize);
        loaded
    };
    with(weights + scratch + graphs).unwrap();
    let said = refused(with(weights + scratch + graphs - 1));
    let parts = format!(
        "a model ({weights} bytes of weights, {scratch} for sessions and scratch, {graphs} for decode graphs)"
    );
    assert!(said.contains(&parts), "{said}");
}

/// Or what is counted before the load is less than what decoding takes: eight graphs are kept for a layer, as of passes of one to eight sessions.
#[test]
fn the_trial_has_the_launches_that_graphs_of_one_to_eight_sessions_have_on_average() {
    let turn = turn();
    let model = Model::golden();
    let cuda = model.cuda(FULL, &turn);
    let trial = turn.emulator.graphs().largest;
    // The end of a group of 128, where the indexer chooses: the layers with most launches.
    let begun = begun(&model, 0, 127);
    let largest = [1, 2].map(|sessions| {
        turn.emulator.reset();
        let mut kvs = vec![begun.clone(); sessions];
        step(&cuda, &[7, 8][..sessions], &mut kvs).unwrap();
        turn.emulator.graphs().largest
    });
    let [one, two] = largest;
    let of_session = two - one;
    assert_eq!(
        2 * trial,
        2 * one + 7 * of_session,
        "{one} launches for a session, {of_session} for each more"
    );
}

#[test]
fn cached_files_are_free_memory_to_a_device_that_shares_it_with_the_host_and_to_no_other() {
    let turn = turn();
    let model = Model::golden();
    turn.emulator.unified(true);
    let shared = Arc::new(Device::open(0).unwrap());
    // As pages of files would, for the driver.
    let _cached = turn.device.allocate::<u8>("a test", 64 << 20).unwrap();
    let (free, total) = turn.device.memory().unwrap();
    // Enough for the weights, less than what is asked for with scratch.
    turn.emulator.memory((total - free + (10 << 20)) as usize);
    let load = |device| model.load(FULL, device, Decode::Launches, &mut |_, _| {});
    let said = refused(load(&turn.device));
    let loaded = load(&shared);
    turn.emulator.memory(total as usize);
    assert!(said.contains("10485760 of"), "{said}");
    assert_eq!(*loaded.unwrap().way(), Way::Shared);
}
