//! What a device that fails does to sessions: one that has no room refuses a request, one that broke refuses all, and neither changes a session; nor does a
//! pass that nobody waits for any more.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ds4_gguf::LayerSpan;
use ds4_model::{Kv, ModelError, ModelSlice, stop};
use ds4_model_cuda::CudaSlice;

use crate::model::{decode, empty, run};
use crate::support::{Model, Turn, tokens, turn};

fn forward(cuda: &CudaSlice, ids: &[u32], kv: &mut Kv) -> Result<(), ModelError> {
    let mut hidden = cuda.embed(ids)?;
    cuda.forward(ids, &mut hidden, kv)
}

/// Whether the error is of the device and ends it for this process, and its text.
fn of_device(error: &ModelError) -> (bool, String) {
    match error {
        ModelError::Device { fatal, .. } => (*fatal, error.to_string()),
        other => panic!("expected the device's error, found {other}"),
    }
}

/// The model on both back ends, and a session of five tokens on each.
fn begun(turn: &Turn, model: &Model) -> (CudaSlice, Kv, Kv) {
    let span = LayerSpan::full(4);
    let (cuda, cpu) = (model.cuda(span, turn), model.cpu(span));
    let (mut found, mut expected) = (empty(&cuda, span), empty(&cpu, span));
    run(&cuda, &tokens(5, 96), 5, &mut [&mut found]);
    run(&cpu, &tokens(5, 96), 5, &mut [&mut expected]);
    (cuda, found, expected)
}

#[test]
fn a_device_without_room_refuses_one_request_and_serves_the_others() {
    let turn = turn();
    let model = Model::golden();
    let (cuda, mut session, mut expected) = begun(&turn, &model);
    let (free, total) = turn.device.memory().unwrap();
    turn.emulator.memory((total - free) as usize);
    let mut another = empty(&cuda, LayerSpan::full(4));
    let refused = forward(&cuda, &tokens(3, 96), &mut another).unwrap_err();
    let (fatal, said) = of_device(&refused);
    assert!(
        !fatal && said.contains("KV takes") && said.contains("0 of"),
        "{said}"
    );
    let cpu = model.cpu(LayerSpan::full(4));
    let (a, b) = (
        decode(&cpu, &mut expected, 1, 2),
        decode(&cuda, &mut session, 1, 2),
    );
    assert_eq!(a, b, "tokens of the session that was there");
    turn.emulator.memory(total as usize);
    forward(&cuda, &tokens(3, 96), &mut another).unwrap();
    assert_eq!(another.frontier(), 3);
}

#[test]
fn a_kernel_that_fails_is_named_ends_the_device_and_leaves_sessions_as_they_were() {
    let turn = turn();
    let model = Model::golden();
    let (cuda, mut session, mut expected) = begun(&turn, &model);
    turn.emulator.fail("attend");
    let broken = forward(&cuda, &[7], &mut session).unwrap_err();
    let (fatal, said) = of_device(&broken);
    assert!(fatal && said.contains("attend"), "{said}");
    let mut another = empty(&cuda, LayerSpan::full(4));
    let (fatal, said) = of_device(&forward(&cuda, &[7], &mut another).unwrap_err());
    assert!(fatal, "every later call fails too: {said}");
    // As a new process would: the host's rows are all that is needed.
    turn.emulator.reset();
    assert_eq!(session.frontier(), 5);
    let cpu = model.cpu(LayerSpan::full(4));
    let (a, b) = (
        decode(&cpu, &mut expected, 1, 2),
        decode(&cuda, &mut session, 1, 2),
    );
    assert_eq!(a, b, "tokens after the fault");
}

#[test]
fn a_pass_that_nobody_waits_for_ends_with_its_layer_and_leaves_the_session_as_it_was() {
    let turn = turn();
    let model = Model::golden();
    let (cuda, mut session, mut expected) = begun(&turn, &model);
    let (ids, flag) = (tokens(80, 96), Arc::new(AtomicBool::new(false)));
    // The caller leaves while the first layer is computed; a second one would fail.
    turn.emulator.raise("attend", &flag);
    turn.emulator.fail_after("attend", 1);
    let stopped = stop::until(&flag, || forward(&cuda, &ids, &mut session));
    assert!(matches!(stopped, Err(ModelError::Stopped)), "{stopped:?}");
    assert_eq!(session.frontier(), 5);
    let broken = forward(&cuda, &ids, &mut session).unwrap_err();
    assert!(
        of_device(&broken).0,
        "the next layer is where the fault lies: {broken}"
    );
    // The driver's bindings tell the next call what failed while the pass was given up.
    assert!(of_device(&forward(&cuda, &ids, &mut session).unwrap_err()).0);
    turn.emulator.reset();
    run(&cuda, &ids, 80, &mut [&mut session]);
    let cpu = model.cpu(LayerSpan::full(4));
    run(&cpu, &ids, 80, &mut [&mut expected]);
    assert_eq!(
        decode(&cpu, &mut expected, 1, 2),
        decode(&cuda, &mut session, 1, 2)
    );
}

#[test]
fn a_device_with_room_for_the_weights_and_not_for_the_first_pass_is_refused_at_load() {
    let turn = turn();
    let model = Model::golden();
    let span = LayerSpan::full(4);
    let weights = model.cuda(span, &turn).info().weight_bytes;
    let (free, total) = turn.device.memory().unwrap();
    // Weights, a tenth of them, and a little; scratch takes 16 MiB at once.
    let room = weights + weights / 10 + (1 << 20);
    assert!(room < weights + (16 << 20));
    turn.emulator.memory((total - free + room) as usize);
    let refused = model.try_cuda(span, &turn).unwrap_err();
    turn.emulator.memory(total as usize);
    let (fatal, said) = of_device(&refused);
    let asked = format!("takes {} bytes, {room} of", weights + (16 << 20));
    assert!(!fatal && said.contains(&asked), "{said}");
}
