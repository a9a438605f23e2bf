//! What the checks run on: the system's device.

use std::sync::OnceLock;

use ds4_kernels_metal::{Buffer, Device, Element, MetalError};

pub use crate::operands::{Random, assert_bits, matrix, rows};

/// The device.
pub struct Bench {
    pub device: &'static Device,
    /// The same without `simdgroup_matrix`.
    pub plain: &'static Device,
}

/// Opens the device, once.
pub fn device() -> Result<&'static Device, MetalError> {
    static DEVICE: OnceLock<Result<Device, MetalError>> = OnceLock::new();
    DEVICE.get_or_init(Device::open).as_ref().map_err(Clone::clone)
}

pub fn bench() -> Bench {
    static PLAIN: OnceLock<Device> = OnceLock::new();
    let device = device().unwrap();
    Bench {
        device,
        plain: PLAIN.get_or_init(|| device.plain()),
    }
}

impl Bench {
    /// A device has one order of its own.
    pub fn each_order(&self, mut run: impl FnMut(&Device)) {
        run(self.device);
    }

    /// With `simdgroup_matrix` and without.
    pub fn each_way(&self, run: impl FnMut(&Device)) {
        [self.device, self.plain].into_iter().for_each(run);
    }

    pub fn upload<T: Element>(&self, values: &[T]) -> Buffer<T> {
        self.device.upload("a check", values).unwrap()
    }

    pub fn room<T: Element>(&self, len: usize) -> Buffer<T> {
        self.device.allocate("a check", len).unwrap()
    }
}
