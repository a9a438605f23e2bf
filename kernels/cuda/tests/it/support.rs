//! The device under test, and random operands.

use std::sync::{Mutex, MutexGuard, OnceLock};

use ds4_emu::Emulator;
use ds4_kernels::{Format, Matrix};
use ds4_kernels_cuda::{Buffer, Device, Element};

/// Orders in which threads and blocks get their turn.
const ORDERS: [u64; 5] = [0, 1, 2, 3, 77];

/// The device, one test at a time, and the emulator behind it if there is one.
pub struct Bench {
    pub device: &'static Device,
    pub emulator: Option<&'static Emulator>,
    _turn: MutexGuard<'static, ()>,
}

/// Opens the device: the emulated one, or a real one when `DS4_CUDA_TEST` is `device`.
pub fn bench() -> Bench {
    static DEVICE: OnceLock<(Device, Option<&'static Emulator>)> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (device, emulator) = DEVICE.get_or_init(|| {
        let real = std::env::var("DS4_CUDA_TEST").is_ok_and(|value| value == "device");
        let emulator = (!real).then(|| ds4_emu::install().unwrap());
        (Device::open(0).unwrap(), emulator)
    });
    if let Some(emulator) = emulator {
        emulator.reset();
        emulator.order(0);
    }
    Bench {
        device,
        emulator: *emulator,
        _turn: turn,
    }
}

impl Bench {
    /// Calls `run` once per order of threads; on a device once.
    pub fn each_order(&self, mut run: impl FnMut(&Device)) {
        let Some(emulator) = self.emulator else {
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

/// Compares bits, and says where they differ first.
#[track_caller]
pub fn assert_bits(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let differ = expected
        .iter()
        .zip(found)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differ {
        let count = expected
            .iter()
            .zip(found)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        panic!(
            "{what}: {count} of {} differ, first {at}: expected {}, found {}",
            expected.len(),
            expected[at],
            found[at]
        );
    }
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Random rows of a format; scales of ordinary size.
pub fn rows(random: &mut Random, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let blocks = rows * cols / format.block_len();
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next() as u8)
        .take(blocks * format.block_bytes())
        .collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let mut half = |at: usize| {
            let value = half::f16::from_f32(random.uniform() * 0.1);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match format {
            Format::Q2K => [80, 82].map(&mut half),
            Format::Q4K => [0, 2].map(&mut half),
            Format::F32 => {
                block.copy_from_slice(&random.uniform().to_le_bytes());
                continue;
            }
            _ => [half(0), ()],
        };
    }
    bytes
}

pub fn matrix(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Matrix<'_> {
    Matrix::new(format, rows, cols, bytes).unwrap()
}
