//! A pass that nobody waits for any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ds4_emu::metal::Emulated;
use ds4_gguf::LayerSpan;
use ds4_kernels_metal::{Device, Driver, Facts, Launch, Memory, MetalError};
use ds4_model::{ModelError, ModelSlice, stop};

use crate::model::{decode, empty, run};
use crate::support::{Model, tokens, turn};

/// A device during whose first layer the caller leaves.
#[derive(Debug)]
struct Leaving {
    device: Arc<Emulated>,
    flag: Arc<AtomicBool>,
    /// Layers that were submitted.
    layers: AtomicUsize,
}

impl Driver for Leaving {
    fn facts(&self) -> &Facts {
        self.device.facts()
    }

    fn free(&self) -> u64 {
        self.device.free()
    }

    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, MetalError> {
        self.device.allocate(what, bytes)
    }

    unsafe fn adopt(&self, bytes: &[u8]) -> Result<(Memory, usize), MetalError> {
        // SAFETY: as the caller says.
        unsafe { self.device.adopt(bytes) }
    }

    fn release(&self, memory: &Memory) {
        self.device.release(memory);
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), MetalError> {
        self.device.launch(launch)
    }

    fn submit(&self) -> Result<(), MetalError> {
        self.flag.store(true, Ordering::Relaxed);
        self.layers.fetch_add(1, Ordering::Relaxed);
        self.device.submit()
    }

    fn settle(&self) -> Result<(), MetalError> {
        self.device.settle()
    }

    fn wait(&self) -> Result<(), MetalError> {
        self.device.wait()
    }
}

#[test]
fn a_pass_that_nobody_waits_for_ends_with_its_layer_and_leaves_the_session_as_it_was() {
    let mut turn = turn();
    let driver = Arc::new(Leaving {
        device: turn.emulator.clone(),
        flag: Arc::default(),
        layers: AtomicUsize::new(0),
    });
    turn.device = Arc::new(Device::on(driver.clone()));
    let (model, span) = (Model::golden(), LayerSpan::full(4));
    let (metal, cpu) = (model.metal(span, &turn), model.cpu(span));
    let (mut session, mut expected) = (empty(&metal, span), empty(&cpu, span));
    run(&metal, &tokens(5, 96), 5, &mut [&mut session]);
    let ids = tokens(80, 96);
    let mut hidden = metal.embed(&ids).unwrap();
    driver.flag.store(false, Ordering::Relaxed);
    driver.layers.store(0, Ordering::Relaxed);
    let stopped = stop::until(&driver.flag, || metal.forward(&ids, &mut hidden, &mut session));
    assert!(matches!(stopped, Err(ModelError::Stopped)), "{stopped:?}");
    assert_eq!(
        (driver.layers.load(Ordering::Relaxed), session.frontier()),
        (1, 5)
    );
    run(&metal, &ids, 80, &mut [&mut session]);
    run(&cpu, &tokens(5, 96), 5, &mut [&mut expected]);
    run(&cpu, &ids, 80, &mut [&mut expected]);
    assert_eq!(
        decode(&cpu, &mut expected, 1, 2),
        decode(&metal, &mut session, 1, 2)
    );
}
