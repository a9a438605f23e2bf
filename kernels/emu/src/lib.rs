//! Test only: runs the CUDA and the Metal kernels on the CPU, with the real host code. What follows is said of CUDA; [`metal`] has the other.
//!
//! The kernels' source is compiled as C++: each CUDA thread is a fibre, blocks run one after the other, warp operations and barriers are rendezvous. Around them
//! lies a `libcuda.so` with the driver calls that `cudarc` makes. [`install`] loads it before `cudarc` looks for the driver, so that launch
//! tables, argument order, buffers and copies under test are those that run on a device.
//!
//! What it finds that a device may hide: memory that nobody wrote (every byte is `0xff`, a NaN), writes beside an allocation, warp operations whose lanes
//! are not those of their mask, barriers that not all threads reach, and results that depend on the order in which threads run ([`Emulator::order`]).
//! With `DS4_EMU_SANITIZE=address,undefined` at build time, reads out of bounds too (the process then needs `LD_PRELOAD` of the compiler's `libasan.so`).

pub mod compile;
pub mod metal;
pub mod msl;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use libloading::Library;

pub use turn::{Turn, turn};

/// Names another library than the one compiled with this crate: how tests run kernels with planted faults.
pub const LIBRARY_VARIABLE: &str = "DS4_EMU_LIBRARY";

/// `KERNEL:N`: the launch of that kernel after N others fails, as [`Emulator::fail_after`] has it; `cuMemAlloc:N`: the first allocation of at least N bytes
/// finds no room. For programs that find the library as their driver.
pub const FAIL_VARIABLE: &str = "DS4_EMU_FAIL";

/// Bytes of memory that the device has, for such programs.
pub const MEMORY_VARIABLE: &str = "DS4_EMU_MEMORY";

/// Bytes of host memory that may be page-locked at a time, for such programs.
pub const LOCKABLE_VARIABLE: &str = "DS4_EMU_LOCKABLE";

/// What the names of calls begin with that the driver does not support (`cuGraph`), for such programs.
pub const LACKS_VARIABLE: &str = "DS4_EMU_LACKS";

/// Why there is no emulator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the emulated CUDA driver {path}: {reason}")]
pub struct EmulatorError {
    path: PathBuf,
    reason: String,
}

/// The loaded driver.
#[derive(Debug)]
pub struct Emulator {
    library: Library,
}

/// The library compiled with this crate, called `libcuda.so`: its folder in `LD_LIBRARY_PATH` gives a program the emulated driver.
#[must_use]
pub fn library() -> &'static Path {
    Path::new(env!("DS4_EMU_LIBRARY"))
}

/// This crate's folder and the kernels' folder, for [`compile::Options`].
#[must_use]
pub fn folders() -> (&'static Path, PathBuf) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    (here, here.join("../cuda/cu"))
}

/// Loads the driver, once per process; `cudarc` finds it from then on under the name `libcuda.so`.
///
/// # Errors
/// When the library cannot be loaded.
pub fn install() -> Result<&'static Emulator, EmulatorError> {
    static LOADED: OnceLock<Result<Emulator, EmulatorError>> = OnceLock::new();
    let load = || {
        let path = std::env::var_os(LIBRARY_VARIABLE).map_or_else(|| library().to_owned(), PathBuf::from);
        // SAFETY: our own library; its initialisers only register kernels.
        let loaded = unsafe { Library::new(&path) };
        loaded
            .map(|library| Emulator { library })
            .map_err(|error| EmulatorError {
                path,
                reason: error.to_string(),
            })
    };
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Calls that concern graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graphs {
    /// Graphs made ready to run.
    pub instantiated: usize,
    /// Launches of graphs.
    pub launched: usize,
    /// Nodes that got other parameters.
    pub changed: usize,
    /// Nodes of the largest graph since [`Emulator::reset`].
    pub largest: usize,
}

impl Emulator {
    /// The order in which threads and blocks get their turn from now on: 0 ascending, 1 descending, others shuffled with that seed, where a warp runs as far
    /// as it can before the next begins.
    pub fn order(&self, seed: u64) {
        self.control::<u64>(b"ds4EmulatorOrder", seed);
    }

    /// Forgets a failed launch, after which every call answers with its error, as a device's context does.
    pub fn reset(&self) {
        // SAFETY: the symbol is ours and has this type.
        let reset = unsafe { self.library.get::<unsafe extern "C" fn()>(b"ds4EmulatorReset") };
        if let Ok(reset) = reset {
            // SAFETY: it takes nothing and locks.
            unsafe { reset() }
        }
    }

    /// The memory that the device has from now on.
    pub fn memory(&self, bytes: usize) {
        self.control::<usize>(b"ds4EmulatorMemory", bytes);
    }

    /// From now on one bit of what this kernel writes is wrong after every launch: who compares its results must find that. `None` ends it.
    pub fn spoil(&self, kernel: Option<&str>) {
        let name = std::ffi::CString::new(kernel.unwrap_or_default()).unwrap_or_default();
        self.control(b"ds4EmulatorSpoil", name.as_ptr());
    }

    /// The next launch of this kernel fails as a fault of the device does: with an error that every later call answers too. Of a call by its name
    /// (`cuGraphInstantiate`, `cuGraphExecKernelNodeSetParams`) the next one is refused.
    pub fn fail(&self, kernel: &str) {
        self.fail_after(kernel, 0);
    }

    /// As [`Emulator::fail`], once so many launches of the kernel went well.
    pub fn fail_after(&self, kernel: &str, launches: usize) {
        type Call = unsafe extern "C" fn(*const std::ffi::c_char, usize);
        let name = std::ffi::CString::new(kernel).unwrap_or_default();
        // SAFETY: the symbol is ours and has this type.
        if let Ok(call) = unsafe { self.library.get::<Call>(b"ds4EmulatorFail") } {
            // SAFETY: the name ends with zero and is copied.
            unsafe { call(name.as_ptr(), launches) }
        }
    }

    /// The next launch of this kernel sets `flag`: what happens elsewhere while the device works.
    pub fn raise(&self, kernel: &str, flag: &Arc<AtomicBool>) {
        type Call = unsafe extern "C" fn(*const std::ffi::c_char, *const AtomicBool);
        let name = std::ffi::CString::new(kernel).unwrap_or_default();
        // SAFETY: the symbol is ours and has this type.
        if let Ok(call) = unsafe { self.library.get::<Call>(b"ds4EmulatorRaise") } {
            // SAFETY: the name ends with zero and is copied; the flag is never freed, since its count stays raised.
            unsafe { call(name.as_ptr(), Arc::into_raw(Arc::clone(flag))) }
        }
    }

    /// Bit n: work on the n-th stream that was created is done as late as can be, when something waits for it; on others at once. A device's first
    /// stream computes, its second copies.
    pub fn late(&self, streams: u64) {
        self.control::<u64>(b"ds4EmulatorLate", streams);
    }

    /// Whether streams pass events that they should wait for, and graphs are made without their edges: who relies on that order must see that it is gone.
    pub fn deaf(&self, on: bool) {
        self.control::<u64>(b"ds4EmulatorDeaf", u64::from(on));
    }

    /// Whether the host passes events that it should wait for: who writes again what is still being copied must see that.
    pub fn hasty(&self, on: bool) {
        self.control::<u64>(b"ds4EmulatorHasty", u64::from(on));
    }

    /// Bytes of the device that each node of a graph takes from now on.
    pub fn bytes_of_node(&self, bytes: usize) {
        self.control::<usize>(b"ds4EmulatorNode", bytes);
    }

    /// Bytes of host memory that may be page-locked at a time from now on.
    pub fn lockable(&self, bytes: usize) {
        self.control::<usize>(b"ds4EmulatorLockable", bytes);
    }

    /// Bytes of host memory that are page-locked now.
    #[must_use]
    pub fn locked(&self) -> usize {
        // SAFETY: the symbol is ours and has this type.
        let query = unsafe {
            self.library
                .get::<unsafe extern "C" fn() -> usize>(b"ds4EmulatorLocked")
        };
        // SAFETY: it takes nothing and locks.
        query.map_or(0, |query| unsafe { query() })
    }

    /// Whether devices that are opened from now on share the host's memory.
    pub fn unified(&self, on: bool) {
        self.control::<u64>(b"ds4EmulatorUnified", u64::from(on));
    }

    /// From now on calls whose names begin so are not supported. `None` ends it.
    pub fn lacks(&self, calls: Option<&str>) {
        let name = std::ffi::CString::new(calls.unwrap_or_default()).unwrap_or_default();
        self.control(b"ds4EmulatorLacks", name.as_ptr());
    }

    /// What was done with graphs in this process.
    #[must_use]
    pub fn graphs(&self) -> Graphs {
        let mut counts = [0_usize; 4];
        self.control::<*mut usize>(b"ds4EmulatorGraphs", counts.as_mut_ptr());
        let [instantiated, launched, changed, largest] = counts;
        Graphs {
            instantiated,
            launched,
            changed,
            largest,
        }
    }

    /// In how many orders of threads a kernel has run in this process.
    #[must_use]
    pub fn orders(&self, kernel: &str) -> usize {
        type Query = unsafe extern "C" fn(*const std::ffi::c_char) -> usize;
        let name = std::ffi::CString::new(kernel).unwrap_or_default();
        // SAFETY: the symbol is ours and has this type.
        let query = unsafe { self.library.get::<Query>(b"ds4EmulatorOrders") };
        // SAFETY: the name ends with zero and is not kept.
        query.map_or(0, |query| unsafe { query(name.as_ptr()) })
    }

    /// Sizes of a kernel's parameters as its source declares them; `None` for an unknown name.
    #[must_use]
    pub fn parameters(&self, kernel: &str) -> Option<Vec<usize>> {
        type Query = unsafe extern "C" fn(*const std::ffi::c_char, *mut usize, usize) -> i32;
        let name = std::ffi::CString::new(kernel).ok()?;
        // SAFETY: the symbol is ours and has this type.
        let query = unsafe { self.library.get::<Query>(b"ds4EmulatorParameters") }.ok()?;
        let mut sizes = vec![0; 64];
        // SAFETY: the name ends with zero, and the call writes at most the given number of sizes.
        let count = unsafe { query(name.as_ptr(), sizes.as_mut_ptr(), sizes.len()) };
        sizes.truncate(usize::try_from(count).ok()?);
        Some(sizes)
    }

    fn control<T>(&self, symbol: &[u8], value: T) {
        // SAFETY: the symbols are ours; each takes one number or pointer.
        if let Ok(call) = unsafe { self.library.get::<unsafe extern "C" fn(T)>(symbol) } {
            // SAFETY: as above; the call locks.
            unsafe { call(value) }
        }
    }
}
