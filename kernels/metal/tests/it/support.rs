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
    /// The same without `simdgroup_matrix`.
    pub plain: &'static Device,
    pub emulator: Option<Arc<Emulated>>,
    _turn: MutexGuard<'static, ()>,
}

/// Opens the device: the emulated one, or a real one when `DS4_METAL_TEST` is `device`.
pub fn bench() -> Bench {
    static DEVICE: OnceLock<(Device, Device, Option<Arc<Emulated>>)> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (device, plain, emulator) = DEVICE.get_or_init(|| {
        let (device, emulator) = open();
        let plain = device.plain();
        (device, plain, emulator)
    });
    Bench {
        device,
        plain,
        emulator: emulator.clone(),
        _turn: turn,
    }
}

fn open() -> (Device, Option<Arc<Emulated>>) {
    if std::env::var("DS4_METAL_TEST").is_ok_and(|value| value == "device") {
        return (Device::open().unwrap(), None);
    }
    let emulator = Arc::new(Emulated::open().unwrap());
    (Device::on(emulator.clone()), Some(emulator))
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

    /// The same with `simdgroup_matrix` and without.
    pub fn each_way(&self, mut run: impl FnMut(&Device)) {
        let plain = self.plain;
        self.each_order(|device| [device, plain].into_iter().for_each(&mut run));
    }

    pub fn upload<T: Element>(&self, values: &[T]) -> Buffer<T> {
        self.device.upload("test", values).unwrap()
    }

    pub fn room<T: Element>(&self, len: usize) -> Buffer<T> {
        self.device.allocate("test", len).unwrap()
    }
}
