//! The emulated device, for one test at a time.

use std::sync::{Mutex, MutexGuard, OnceLock};

use ds4_emu::Emulator;
use ds4_kernels_cuda::Device;

pub struct Turn {
    pub device: &'static Device,
    pub emulator: &'static Emulator,
    _turn: MutexGuard<'static, ()>,
}

/// Opens the device once: its streams are the first two of the process.
pub fn turn() -> Turn {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let emulator = ds4_emu::install().unwrap();
    emulator.reset();
    emulator.late(0);
    emulator.deaf(false);
    Turn {
        device: DEVICE.get_or_init(|| Device::open(0).unwrap()),
        emulator,
        _turn: turn,
    }
}
