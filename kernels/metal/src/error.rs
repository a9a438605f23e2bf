//! What can be wrong with a device or a request to it.

use std::borrow::Cow;

use thiserror::Error;

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum MetalError {
    /// No Mac.
    #[error(
        "Metal: expected macOS on Apple silicon, found {os} on {architecture}; use --backend cpu, or --backend cuda with an NVIDIA device"
    )]
    NotMac {
        /// The operating system of this build.
        os: &'static str,
        /// Its processor.
        architecture: &'static str,
    },
    /// A Mac without a device that the kernels run on.
    #[error("Metal device: {0}; use --backend cpu")]
    NoDevice(String),
    /// The device's compiler refused the kernels.
    #[error("Metal kernels: {0}")]
    Kernels(String),
    /// Memory that the device does not have.
    #[error("device memory: {what} takes {asked} bytes, {free} of {total} are free")]
    Memory {
        /// What it was for.
        what: Cow<'static, str>,
        /// Bytes asked for.
        asked: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// Operands that do not fit together.
    #[error("{operation}: {field}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// Which operand.
        field: &'static str,
        /// What fits.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A storage format that an operation does not take.
    #[error("{operation}: no kernel for {format} weights")]
    Format {
        /// The operation.
        operation: &'static str,
        /// The format.
        format: ds4_kernels::Format,
    },
    /// Work that failed on the device.
    #[error("Metal device: {0}")]
    Failed(String),
}

impl MetalError {
    /// Whether the device is of no more use to this process: what was computed before may be wrong, and only a new process helps.
    #[must_use]
    pub const fn is_sticky(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// Refuses operands that do not fit.
pub(crate) fn check(
    operation: &'static str,
    field: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), MetalError> {
    if expected == found {
        return Ok(());
    }
    Err(MetalError::Shape {
        operation,
        field,
        expected,
        found,
    })
}

/// A size as a kernel takes it.
///
/// # Errors
/// When it does not fit 32 bits; the operation is named.
pub(crate) fn size(operation: &'static str, field: &'static str, value: usize) -> Result<u32, MetalError> {
    u32::try_from(value).map_err(|_| MetalError::Shape {
        operation,
        field,
        expected: u32::MAX as usize,
        found: value,
    })
}
