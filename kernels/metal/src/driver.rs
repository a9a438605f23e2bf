//! What a device does for the host code: the one thing that differs between a Mac and the emulator.

use std::fmt;
use std::ptr::NonNull;

use crate::{Kernel, MetalError};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Bytes that it takes without slowing down (Metal's recommended working set).
    pub memory: u64,
    /// Largest threadgroup memory of a group, in bytes.
    pub shared: u32,
    /// Whether its SIMD groups multiply matrices (`simdgroup_matrix`); where not, the plain kernels take prompts too.
    pub matrices: bool,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes shared with the host)", self.name, self.memory)
    }
}

/// An allocation, or pages of the host that the device reads. The host sees the same bytes.
#[derive(Debug)]
pub struct Memory {
    /// The driver's number for it.
    pub number: u32,
    /// Its first byte.
    pub host: NonNull<u8>,
    /// Bytes.
    pub bytes: usize,
}

// SAFETY: an address that stays valid until the driver releases it; who may write when is said by `Device::write`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// A buffer argument: memory and the first byte within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The driver's number of the memory.
    pub memory: u32,
    /// Bytes before the first one.
    pub offset: usize,
}

/// Groups of threads, and threadgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Groups.
    pub grid: (u32, u32),
    /// Threads of a group.
    pub threads: u32,
    /// Bytes of threadgroup memory beside what the kernel declares.
    pub shared: u32,
}

impl Shape {
    /// `count` groups of `threads`.
    pub(crate) const fn blocks(count: usize, threads: u32) -> Self {
        Self::grid(count, 1, threads)
    }

    /// `x` by `y` groups of `threads`.
    #[allow(clippy::cast_possible_truncation)] // shapes are bounded at load, and operands are checked against 32 bits
    pub(crate) const fn grid(x: usize, y: usize, threads: u32) -> Self {
        Self {
            grid: (x as u32, y as u32),
            threads,
            shared: 0,
        }
    }

    /// Enough groups of `threads` for `count` threads.
    pub(crate) const fn threads(count: usize, threads: u32) -> Self {
        Self::blocks(count.div_ceil(threads as usize), threads)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.grid.0 == 0 || self.grid.1 == 0
    }
}

/// One launch: buffers in the order of the kernel's, then its constants.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// Its place in [`crate::TABLE`].
    pub number: usize,
    /// How many threads.
    pub shape: Shape,
    /// `[[buffer(0)]]` and on.
    pub buffers: &'a [Binding],
    /// The bytes of the constants, which follow the buffers.
    pub constants: &'a [u8],
}

/// A device, or what stands for one. Launches are done in their order.
pub trait Driver: fmt::Debug + Send + Sync {
    /// What the device is.
    fn facts(&self) -> &Facts;

    /// Bytes that are free now, of all that the device has.
    fn free(&self) -> u64;

    /// New memory of undefined content.
    ///
    /// # Errors
    /// When the device has no room.
    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, MetalError>;

    /// Lets the device read memory of the host without copying it: the pages around `bytes`. Returns the memory and the offset of the first byte in it.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// The pages must stay as they are until the memory is released.
    unsafe fn adopt(&self, bytes: &[u8]) -> Result<(Memory, usize), MetalError>;

    /// Gives memory back once everything that was launched so far is done; for memory of the host that is when this returns.
    fn release(&self, memory: &Memory);

    /// Adds a launch behind all earlier ones.
    ///
    /// # Errors
    /// When the device does not take it.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), MetalError>;

    /// Sends what was launched to the device and does not wait.
    ///
    /// # Errors
    /// When the device does not take it.
    fn submit(&self) -> Result<(), MetalError>;

    /// Waits until everything that was submitted before the last [`Driver::submit`] is done.
    ///
    /// # Errors
    /// When a kernel failed; the device is then of no more use.
    fn settle(&self) -> Result<(), MetalError>;

    /// Waits until everything that was launched is done.
    ///
    /// # Errors
    /// When a kernel failed; the device is then of no more use.
    fn wait(&self) -> Result<(), MetalError>;
}
