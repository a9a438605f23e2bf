//! What can be wrong with a device or a request to it.

use std::borrow::Cow;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use thiserror::Error;

/// Why a device did not do what it was asked.
#[derive(Debug, Error)]
pub enum CudaError {
    /// No driver on this machine.
    #[error(
        "CUDA driver: expected libcuda.so, found none; install the NVIDIA driver (in a container: run it with the NVIDIA runtime), or use --backend cpu"
    )]
    NoDriver,
    /// A driver without a device.
    #[error(
        "CUDA device {ordinal}: expected one of {count} devices; check CUDA_VISIBLE_DEVICES and nvidia-smi"
    )]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices that the driver has.
        count: usize,
    },
    /// A build without device code.
    #[error("CUDA kernels: this program was built without them; run `cargo xtask fatbin` and build again")]
    NoKernels,
    /// Device code for other devices only.
    #[error("CUDA kernels: none for compute capability {major}.{minor} ({name}): {source}")]
    Architecture {
        /// Major capability.
        major: i32,
        /// Minor capability.
        minor: i32,
        /// Name of the device.
        name: String,
        /// What the driver said.
        source: DriverError,
    },
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
    /// Something else than a launch among launches that become a graph.
    #[error("{call}: expected launches only, of which a graph is made")]
    Noted {
        /// What was asked for.
        call: &'static str,
    },
    /// A call that concerns graphs and that the driver refused.
    #[error("{call}: {source}; --cuda-graph off decodes without graphs, with the same bits")]
    Graph {
        /// The call.
        call: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// A call that the driver refused.
    #[error("{call}: {source}")]
    Driver {
        /// The call or kernel.
        call: &'static str,
        /// What the driver said.
        source: DriverError,
    },
}

impl CudaError {
    /// Whether the context is beyond repair: every later call will fail, and only a new process helps.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        let (Self::Driver { source, .. } | Self::Graph { source, .. }) = self else {
            return false;
        };
        // Errors of this process's use of the API; what is not among them comes from the device.
        !matches!(
            source.0,
            CUresult::CUDA_ERROR_INVALID_VALUE
                | CUresult::CUDA_ERROR_OUT_OF_MEMORY
                | CUresult::CUDA_ERROR_INVALID_DEVICE
                | CUresult::CUDA_ERROR_NOT_FOUND
                | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                | CUresult::CUDA_ERROR_NOT_PERMITTED
                | CUresult::CUDA_ERROR_NOT_SUPPORTED
        )
    }

    /// Names the call of a driver's answer about graphs. A device that broke is none of theirs.
    pub(crate) fn of_graph(call: &'static str) -> impl Fn(DriverError) -> Self {
        move |source| {
            let refused = Self::Graph { call, source };
            if refused.is_sticky() {
                return Self::Driver { call, source };
            }
            refused
        }
    }

    /// Names the call of a driver's answer.
    pub(crate) fn of(call: &'static str) -> impl Fn(DriverError) -> Self {
        move |source| Self::Driver { call, source }
    }
}

/// Refuses operands that do not fit.
pub(crate) fn check(
    operation: &'static str,
    field: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), CudaError> {
    if expected == found {
        Ok(())
    } else {
        Err(CudaError::Shape {
            operation,
            field,
            expected,
            found,
        })
    }
}

/// A size as a kernel takes it.
///
/// # Errors
/// When it does not fit 32 bits; the operation is named.
pub(crate) fn size(operation: &'static str, field: &'static str, value: usize) -> Result<u32, CudaError> {
    u32::try_from(value).map_err(|_| CudaError::Shape {
        operation,
        field,
        expected: u32::MAX as usize,
        found: value,
    })
}
