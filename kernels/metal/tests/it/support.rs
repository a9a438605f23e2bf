//! The device under test.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use ds4_emu::metal::Emulated;
use ds4_kernels_metal::{Buffer, Device, Element};

pub use crate::operands::{Random, assert_bits, matrix, rows};

/// Orders in which threads and groups get their turn.
const ORDERS: [u64; 5] = [0, 1, 2, 3, 77];

/// The device, one test at a time, and the emulator behind it if there is one.
pub struct Bench {
    pub device: &'static Device,
    pub emulator: Option<Arc<Emulated>>,
    _turn: MutexGuard<'static, ()>,
}

/// Opens the device: the emulated one, or a real one when `DS4_METAL_TEST` is `device`.
pub fn bench() -> Bench {
    static DEVICE: OnceLock<(Device, Option<Arc<Emulated>>)> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (device, emulator) = DEVICE.get_or_init(|| {
        if std::env::var("DS4_METAL_TEST").is_ok_and(|value| value == "device") {
            return (Device::open().unwrap(), None);
        }
        let emulator = Arc::new(Emulated::open().unwrap());
        (Device::on(emulator.clone()), Some(emulator))
    });
    Bench {
        device,
        emulator: emulator.clone(),
        _turn: turn,
    }
}

impl Bench {
    /// Calls `run` once per order of threads; on a device once.
    pub fn each_order(&self, mut run: impl FnMut(&Device)) {
        let Some(emulator) = &self.emulator else {
            return run(self.device);
        };
        for order in ORDERS {
            emulator.order(order);
            run(self.device);
        }
        emulator.order(0);
    }

    pub fn upload<T: Element>(&self, values: &[T]) -> Buffer<T> {
        self.device.upload("test", values).unwrap()
    }

    pub fn room<T: Element>(&self, len: usize) -> Buffer<T> {
        self.device.allocate("test", len).unwrap()
    }
}
