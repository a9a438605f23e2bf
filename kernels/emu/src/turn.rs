//! The emulated device, for one test of a process at a time.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ds4_kernels_cuda::{CudaError, Device};

use crate::{Emulator, install};

/// Bytes that the device has when nobody says otherwise, as `device/memory.cpp` has them.
const MEMORY: usize = 8 << 30;

/// The device and its controls, which are as they were at first.
#[derive(Debug)]
pub struct Turn {
    /// Opened once: its streams are the first two of the process.
    pub device: Arc<Device>,
    /// What runs it.
    pub emulator: &'static Emulator,
    _turn: MutexGuard<'static, ()>,
}

/// Waits until no other test has the device.
///
/// # Panics
/// When the emulator cannot be loaded or the device not be opened.
#[must_use]
pub fn turn() -> Turn {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing that the next one does not set.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = install().unwrap_or_else(|error| panic!("{error}"));
    emulator.at_first();
    let open = || Device::open(0).map(Arc::new);
    let opened = |opened: Result<_, CudaError>| opened.unwrap_or_else(|error| panic!("{error}"));
    Turn {
        device: DEVICE.get_or_init(|| opened(open())).clone(),
        emulator,
        _turn: turn,
    }
}

impl Emulator {
    /// All controls as they are when the process begins.
    fn at_first(&self) {
        self.reset();
        self.memory(MEMORY);
        self.order(0);
        self.late(0);
        self.deaf(false);
        self.hasty(false);
        self.spoil(None);
        self.lacks(None);
        self.unified(false);
        self.lockable(usize::MAX);
        self.bytes_of_node(0);
    }
}
