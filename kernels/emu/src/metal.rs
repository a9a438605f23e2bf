//! Runs the Metal kernels on the CPU, below the real host code: the driver of a device that does nothing before it is waited for.
//!
//! A Mac works while the host goes on, so launches are kept and run when the host waits: what the host writes too early, or a launch that uses memory which
//! was given to something else, shows as wrong numbers here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ds4_kernels_metal::{Driver, Facts, Launch, Memory, MetalError, Parameter, Shape};
use libloading::Library;

/// Threadgroup memory of a group on Apple silicon (Metal Feature Set Tables, Apple7 and on).
const SHARED: u32 = 32 * 1024;
/// Threads of a group at most, by the same tables.
const THREADS: u32 = 1024;
/// A buffer's offset on the device is a multiple of this (Metal Feature Set Tables: minimum constant buffer offset alignment is larger, device buffers take 4).
const OFFSET: usize = 4;

/// The library compiled with this crate.
#[must_use]
pub fn library() -> &'static Path {
    Path::new(env!("DS4_EMU_METAL_LIBRARY"))
}

/// The emulated device.
#[derive(Debug)]
pub struct Emulated {
    library: Library,
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    memories: BTreeMap<u32, Held>,
    queue: Vec<Queued>,
    /// How often each kernel was launched.
    launches: BTreeMap<&'static str, usize>,
    /// Of the queue, what was submitted before the last submission, and with it.
    submitted: (usize, usize),
    /// Released, but perhaps used by what is queued.
    released: Vec<u32>,
    failed: Option<String>,
}

#[derive(Debug)]
struct Held {
    address: usize,
    bytes: usize,
    /// Pages of the host.
    adopted: bool,
}

#[derive(Debug)]
struct Queued {
    name: &'static str,
    shape: Shape,
    addresses: Vec<usize>,
    constants: Vec<u32>,
}

impl Emulated {
    /// The device with the kernels of this build.
    ///
    /// # Errors
    /// When the library cannot be loaded.
    pub fn open() -> Result<Self, String> {
        Self::load(library())
    }

    /// The device with kernels that [`crate::msl::compile`] made.
    ///
    /// # Errors
    /// When the library cannot be loaded.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: our own library; its initialisers only register kernels.
        let library =
            unsafe { Library::new(path) }.map_err(|error| format!("{}: {error}", path.display()))?;
        let mut found = Self {
            library,
            facts: Facts {
                name: "Metal emulated on the CPU".into(),
                memory: 0,
                shared: SHARED,
                matrices: true,
            },
            state: Mutex::default(),
        };
        // SAFETY: takes nothing and gives a number.
        found.facts.memory =
            unsafe { found.function::<unsafe extern "C" fn() -> usize>(b"ds4MetalCapacity")() } as u64;
        Ok(found)
    }

    /// The same as a device older than family Apple7, whose SIMD groups multiply no matrices.
    #[must_use]
    pub fn without_matrices(mut self) -> Self {
        self.facts.matrices = false;
        self
    }

    /// Launches so far of kernels whose names contain `part`.
    #[must_use]
    pub fn launches(&self, part: &str) -> usize {
        let state = self.state();
        let of_part = state.launches.iter().filter(|(name, _)| name.contains(part));
        of_part.map(|(_, count)| count).sum()
    }

    /// The order in which threads and groups get their turn from now on: 0 ascending, 1 descending, others shuffled with that seed, where a SIMD group runs as
    /// far as it can before the next begins.
    pub fn order(&self, seed: u64) {
        let _turn = self.state();
        // SAFETY: takes a number.
        unsafe { self.function::<unsafe extern "C" fn(u64)>(b"ds4MetalOrder")(seed) };
    }

    /// Whether numbers below the normal ones are zero from now on, as a device may have it.
    pub fn flush_subnormals(&self, on: bool) {
        let _turn = self.state();
        // SAFETY: takes a number.
        unsafe { self.function::<unsafe extern "C" fn(i32)>(b"ds4MetalFlush")(i32::from(on)) };
    }

    /// The memory that the device has from now on.
    pub fn limit(&self, bytes: usize) {
        let _turn = self.state();
        // SAFETY: takes a number.
        unsafe { self.function::<unsafe extern "C" fn(usize)>(b"ds4MetalMemory")(bytes) };
    }

    /// Buffers and bytes of constants of a kernel as its source declares them; `None` for an unknown name.
    #[must_use]
    pub fn parameters(&self, kernel: &str) -> Option<(Vec<Parameter>, usize)> {
        type Query = unsafe extern "C" fn(*const std::ffi::c_char, *mut u8, *mut usize, usize) -> i32;
        let name = std::ffi::CString::new(kernel).ok()?;
        let (mut kinds, mut sizes) = ([0u8; 32], [0usize; 32]);
        // SAFETY: the name ends with zero, and the call writes at most the given number of each.
        let count = unsafe {
            self.function::<Query>(b"ds4MetalParameters")(
                name.as_ptr(),
                kinds.as_mut_ptr(),
                sizes.as_mut_ptr(),
                32,
            )
        };
        let count = usize::try_from(count).ok()?;
        let described = || kinds.iter().zip(sizes).take(count);
        let buffers = described().filter(|(kind, _)| **kind != b'c');
        let buffers = buffers.map(|(kind, size)| Parameter {
            size,
            writes: *kind == b'w',
        });
        let constants = described()
            .filter(|(kind, _)| **kind == b'c')
            .map(|(_, size)| size)
            .sum();
        Some((buffers.collect(), constants))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A function of the library.
    fn function<T: Copy>(&self, name: &[u8]) -> T {
        // SAFETY: the symbols are ours, and each caller names its type.
        match unsafe { self.library.get::<T>(name) } {
            Ok(symbol) => *symbol,
            Err(error) => panic!("{}: {error}", String::from_utf8_lossy(name)),
        }
    }

    fn run(&self, queued: &Queued) -> Result<(), String> {
        type Run = unsafe extern "C" fn(
            *const std::ffi::c_char,
            u32,
            u32,
            u32,
            u32,
            *mut *const u8,
        ) -> *const std::ffi::c_char;
        let name = std::ffi::CString::new(queued.name).map_err(|error| error.to_string())?;
        let mut arguments: Vec<*const u8> = queued
            .addresses
            .iter()
            .map(|address| *address as *const u8)
            .collect();
        arguments.push(queued.constants.as_ptr().cast());
        let Shape {
            grid: (x, y),
            threads,
            shared,
        } = queued.shape;
        // SAFETY: a pointer per parameter of the kernel, as the launch table has them, and the library checks writes around what it allocated.
        let failure = unsafe {
            self.function::<Run>(b"ds4MetalLaunch")(
                name.as_ptr(),
                x,
                y,
                threads,
                shared,
                arguments.as_mut_ptr(),
            )
        };
        if failure.is_null() {
            return Ok(());
        }
        // SAFETY: a text of the library that ends with zero and stays until its next call, which the state's lock keeps off.
        Err(unsafe { std::ffi::CStr::from_ptr(failure) }
            .to_string_lossy()
            .into_owned())
    }

    /// Does the first `count` of what is queued.
    fn work(&self, state: &mut State, count: usize) {
        for queued in state.queue.drain(..count) {
            // As on a device, everything after a failure fails too.
            if state.failed.is_none() {
                state.failed = self.run(&queued).err();
            }
        }
        let left = |mark: usize| mark.saturating_sub(count);
        state.submitted = (left(state.submitted.0), left(state.submitted.1));
    }

    fn finish(&self, state: &mut State) {
        let all = state.queue.len();
        self.work(state, all);
        for number in std::mem::take(&mut state.released) {
            self.forget(state, number);
        }
    }

    fn forget(&self, state: &mut State, number: u32) {
        if let Some(held) = state.memories.remove(&number)
            && !held.adopted
        {
            // SAFETY: an address that the library gave.
            let known = unsafe {
                self.function::<unsafe extern "C" fn(usize) -> i32>(b"ds4MetalRelease")(held.address)
            };
            assert_eq!(known, 1, "memory of the emulator");
        }
    }
}

/// What a Mac would refuse of a launch.
fn refused(launch: &Launch<'_>, matrices: bool) -> Option<String> {
    let Shape { threads, shared, .. } = launch.shape;
    if launch.kernel.name.contains("tiles") && !matrices {
        return Some("simdgroup_matrix: family Apple7 or newer is asked for".into());
    }
    if threads == 0 || threads > THREADS || !threads.is_multiple_of(32) {
        return Some(format!("a group of {threads} threads"));
    }
    if shared > SHARED {
        return Some(format!(
            "{shared} bytes of threadgroup memory, {SHARED} are there"
        ));
    }
    if !shared.is_multiple_of(16) {
        return Some(format!(
            "{shared} bytes of threadgroup memory: a multiple of 16 is asked for"
        ));
    }
    let unaligned = launch.buffers.iter().zip(launch.kernel.buffers);
    let mut unaligned =
        unaligned.filter(|(binding, of)| of.size > 1 && !binding.offset.is_multiple_of(OFFSET.max(of.size)));
    unaligned
        .next()
        .map(|(binding, _)| format!("a buffer at offset {}", binding.offset))
}

impl Driver for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free(&self) -> u64 {
        // SAFETY: take nothing and give a number.
        let (all, used) = unsafe {
            (
                self.function::<unsafe extern "C" fn() -> usize>(b"ds4MetalCapacity")(),
                self.function::<unsafe extern "C" fn() -> usize>(b"ds4MetalUsed")(),
            )
        };
        all.saturating_sub(used) as u64
    }

    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, MetalError> {
        let mut state = self.state();
        // SAFETY: takes and gives a number.
        let address =
            unsafe { self.function::<unsafe extern "C" fn(usize) -> usize>(b"ds4MetalAllocate")(bytes) };
        let Some(host) = NonNull::new(address as *mut u8) else {
            drop(state);
            return Err(MetalError::Memory {
                what: what.into(),
                asked: bytes as u64,
                free: self.free(),
                total: self.facts.memory,
            });
        };
        Ok(state.hold(host, bytes, false))
    }

    unsafe fn adopt(&self, bytes: &[u8]) -> Result<(Memory, usize), MetalError> {
        Ok((
            self.state().hold(NonNull::from(bytes).cast(), bytes.len(), true),
            0,
        ))
    }

    fn release(&self, memory: &Memory) {
        let mut state = self.state();
        let of_host = state
            .memories
            .get(&memory.number)
            .is_some_and(|held| held.adopted);
        if of_host {
            // What fails is told at the next wait.
            self.finish(&mut state);
        }
        if state.queue.is_empty() {
            self.forget(&mut state, memory.number);
        } else {
            state.released.push(memory.number);
        }
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), MetalError> {
        let name = launch.kernel.name;
        if let Some(why) = refused(launch, self.facts.matrices) {
            return Err(MetalError::Failed(format!("{name}: {why}")));
        }
        let mut state = self.state();
        let mut addresses = Vec::with_capacity(launch.buffers.len());
        for binding in launch.buffers {
            match state.memories.get(&binding.memory) {
                Some(held) if binding.offset <= held.bytes => addresses.push(held.address + binding.offset),
                _ => return Err(MetalError::Failed(format!("{name}: {binding:?} is not there"))),
            }
        }
        let words = launch.constants.chunks_exact(4);
        let constants = words
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        *state.launches.entry(name).or_default() += 1;
        state.queue.push(Queued {
            name,
            shape: launch.shape,
            addresses,
            constants,
        });
        Ok(())
    }

    fn submit(&self) -> Result<(), MetalError> {
        let mut state = self.state();
        state.submitted = (state.submitted.1, state.queue.len());
        Ok(())
    }

    fn settle(&self) -> Result<(), MetalError> {
        let mut state = self.state();
        let before = state.submitted.0;
        self.work(&mut state, before);
        state.sound()
    }

    fn wait(&self) -> Result<(), MetalError> {
        let mut state = self.state();
        self.finish(&mut state);
        state.sound()
    }
}

impl State {
    fn sound(&self) -> Result<(), MetalError> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(MetalError::Failed(why.clone())),
        }
    }

    fn hold(&mut self, host: NonNull<u8>, bytes: usize, adopted: bool) -> Memory {
        let number = self.next;
        self.next += 1;
        let held = Held {
            address: host.as_ptr() as usize,
            bytes,
            adopted,
        };
        self.memories.insert(number, held);
        Memory { number, host, bytes }
    }
}

/// Files that every family builds on.
const SHARED_FILES: [&str; 8] = [
    "base.metal",
    "math.cuh",
    "codec.cuh",
    "grid.cuh",
    "f64.metal",
    "formats.metal",
    "quantized.metal",
    "tiles.metal",
];

/// Compiles the kernels of one file with a planted fault, there or in a file that it builds on: `wrong` in the place of `right`, which must be there exactly
/// once.
///
/// # Errors
/// When `right` is not there once, or with what the compiler says.
pub fn with_fault(file: &str, right: &str, wrong: &str, folder: &Path) -> Result<PathBuf, String> {
    let all = ds4_kernels_metal::source();
    let name = |part: &str| part.split('"').next().unwrap_or_default().to_owned();
    let parts = all.split("#line 1 \"").filter(|part| {
        let name = name(part);
        name == file || SHARED_FILES.contains(&name.as_str())
    });
    let text: String = parts.flat_map(|part| ["#line 1 \"", part]).collect();
    let count = text.matches(right).count();
    if count != 1 {
        return Err(format!("{count} places with {right:?}"));
    }
    let out = folder.join("libds4metal.so");
    crate::msl::compile(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &text.replace(right, wrong),
        &out,
    )?;
    Ok(out)
}
