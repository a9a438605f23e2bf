//! What is refused before weights are read.

use ds4_gguf::LayerSpan;
use ds4_model::{ModelError, ModelSlice};

use crate::support::{Model, turn};

#[test]
fn a_device_with_room_for_the_weights_and_not_for_the_first_pass_is_refused_at_load() {
    let turn = turn();
    let model = Model::golden();
    let span = LayerSpan::full(4);
    let weights = model.metal(span, &turn).info().weight_bytes;
    let (free, total) = turn.device.memory();
    // Two blocks of scratch, which are more than a tenth of these weights.
    let asked = weights + (32 << 20);
    let mut told = Vec::new();
    let mut with = |room: u64| {
        turn.emulator.limit((total - free + room) as usize);
        let loaded = model.try_metal(span, &turn, &mut |done, _| told.push(done));
        turn.emulator.limit(total as usize);
        loaded
    };
    let refused = with(asked - 1).unwrap_err();
    let ModelError::Device {
        fatal: false, source, ..
    } = refused
    else {
        panic!("expected the device's error, found {refused}")
    };
    let said = source.to_string();
    assert!(
        said.contains(&format!("takes {asked} bytes, {} of", asked - 1)),
        "{said}"
    );
    assert!(said.contains(&format!("{weights} bytes of weights")), "{said}");
    with(asked).unwrap();
    assert_eq!(
        told.first(),
        Some(&0),
        "reported once it was clear that there is room"
    );
    assert_eq!(told.iter().filter(|done| **done == 0).count(), 1);
}
