//! The emulated device.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ds4_emu::Emulator;
use ds4_kernels_cuda::Device;
use ds4_kernels_suite::{Bench, Case, Failure, Random};

/// Orders in which threads and blocks get their turn: ascending, descending, shuffled.
pub const ORDERS: [u64; 5] = [0, 1, 2, 3, 77];

/// The device, for one test at a time.
pub struct Turn {
    pub device: &'static Device,
    pub emulator: &'static Emulator,
    _turn: MutexGuard<'static, ()>,
}

pub fn turn() -> Turn {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = ds4_emu::install().unwrap();
    emulator.reset();
    emulator.order(0);
    Turn {
        device: DEVICE.get_or_init(|| Device::open(0).unwrap()),
        emulator,
        _turn: turn,
    }
}

impl Turn {
    /// Runs a case; the same numbers give the same operands.
    pub fn run(&self, case: &Case, tokens: usize, seed: u64, order: u64) -> Result<(), String> {
        self.emulator.order(order);
        let mut bench = Bench {
            device: self.device,
            random: Random(seed),
            tokens,
        };
        let said = |error: Failure| {
            let name = case.name;
            format!("{name}: {tokens} tokens, seed {seed}, order {order}: {error}")
        };
        (case.run)(&mut bench).map_err(said)
    }
}
