//! The driver for macOS: Metal's own objects.
//!
//! Launches are encoded into one command buffer until [`Driver::submit`] sends it. Its encoder is a serial one, and Metal tracks the buffers that are bound, so
//! launches see what earlier ones wrote, within a command buffer and beyond.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::sel;
use objc2_foundation::{NSError, NSString};
use objc2_metal::{
    MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue,
    MTLCompileOptions, MTLComputeCommandEncoder, MTLComputePipelineState, MTLCreateSystemDefaultDevice,
    MTLDevice, MTLGPUFamily, MTLLibrary, MTLMathFloatingPointFunctions, MTLMathMode, MTLResidencySet,
    MTLResidencySetDescriptor, MTLResourceOptions, MTLSize,
};

use crate::{Driver, Facts, Launch, Memory, MetalError, TABLE, source};

/// Pages of Apple silicon: what a buffer without a copy starts and ends at.
const PAGE: usize = 16 * 1024;

type Object<T> = Retained<ProtocolObject<T>>;
type Pipeline = Object<dyn MTLComputePipelineState>;

/// The system's device.
#[derive(Debug)]
pub(crate) struct Apple {
    facts: Facts,
    device: Object<dyn MTLDevice>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Object<dyn MTLCommandQueue>,
    /// All memory, so that nothing of it has to be found again for each command buffer.
    resident: Object<dyn MTLResidencySet>,
    /// Whether the set has changed since it was last committed.
    changed: bool,
    /// One per kernel of the table.
    pipelines: Vec<Pipeline>,
    next: u32,
    memories: HashMap<u32, Held>,
    /// Given back, but perhaps used by what was launched.
    released: Vec<Object<dyn MTLBuffer>>,
    open: Option<Encoding>,
    sent: Vec<Object<dyn MTLCommandBuffer>>,
    failed: Option<String>,
}

#[derive(Debug)]
struct Held {
    buffer: Object<dyn MTLBuffer>,
    /// Pages of the host.
    adopted: bool,
}

/// A command buffer that is being filled.
#[derive(Debug)]
struct Encoding {
    commands: Object<dyn MTLCommandBuffer>,
    encoder: Object<dyn MTLComputeCommandEncoder>,
}

// SAFETY: Metal's objects may be used from any thread; encoders and command buffers by one at a time, which the mutex around them sees to.
unsafe impl Send for State {}
// SAFETY: devices are safe for use by several threads (Metal Programming Guide), and all else lies behind the mutex.
unsafe impl Send for Apple {}
// SAFETY: as above.
unsafe impl Sync for Apple {}

/// What a Metal error says.
fn text(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

impl Apple {
    /// Opens the system's default device and compiles the kernels for it.
    pub(crate) fn open() -> Result<Self, MetalError> {
        autoreleasepool(|_| {
            let missing = |what: &str| MetalError::NoDevice(what.to_owned());
            let device = MTLCreateSystemDefaultDevice().ok_or_else(|| missing("none was found"))?;
            // Shuffles, 32 lanes and 64-bit integers of the kernels; every Mac with Apple silicon has them.
            if !device.supportsFamily(MTLGPUFamily::Apple7) {
                return Err(missing("expected Apple silicon (GPU family Apple7 or newer)"));
            }
            if !device.respondsToSelector(sel!(newResidencySetWithDescriptor:error:)) {
                return Err(missing("expected macOS 15 or newer"));
            }
            let queue = device
                .newCommandQueue()
                .ok_or_else(|| missing("no command queue"))?;
            let resident = device
                .newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new())
                .map_err(|error| MetalError::NoDevice(text(&error)))?;
            queue.addResidencySet(&resident);
            let pipelines = pipelines(&device)?;
            let facts = Facts {
                name: device.name().to_string(),
                memory: device.recommendedMaxWorkingSetSize(),
                shared: u32::try_from(device.maxThreadgroupMemoryLength()).unwrap_or(u32::MAX),
                // Metal Feature Set Tables: SIMD-scoped matrix multiply operations.
                matrices: device.supportsFamily(MTLGPUFamily::Apple7),
            };
            let state = State {
                queue,
                resident,
                changed: false,
                pipelines,
                next: 0,
                memories: HashMap::new(),
                released: Vec::new(),
                open: None,
                sent: Vec::new(),
                failed: None,
            };
            Ok(Self {
                facts,
                device,
                state: Mutex::new(state),
            })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All kernels, compiled from the text in this program.
fn pipelines(device: &ProtocolObject<dyn MTLDevice>) -> Result<Vec<Pipeline>, MetalError> {
    let options = MTLCompileOptions::new();
    options.setMathMode(MTLMathMode::Safe);
    options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
    let library = device
        .newLibraryWithSource_options_error(&NSString::from_str(&source()), Some(&options))
        .map_err(|error| MetalError::Kernels(text(&error)))?;
    TABLE
        .iter()
        .map(|kernel| pipeline(device, &library, kernel.name))
        .collect()
}

fn pipeline(
    device: &ProtocolObject<dyn MTLDevice>,
    library: &ProtocolObject<dyn MTLLibrary>,
    name: &str,
) -> Result<Pipeline, MetalError> {
    let wrong = |why: String| MetalError::Kernels(format!("{name}: {why}"));
    let function = library
        .newFunctionWithName(&NSString::from_str(name))
        .ok_or_else(|| wrong("not in the library".into()))?;
    let pipeline = device
        .newComputePipelineStateWithFunction_error(&function)
        .map_err(|error| wrong(text(&error)))?;
    match pipeline.threadExecutionWidth() {
        32 => Ok(pipeline),
        other => Err(wrong(format!("SIMD groups of {other}, expected 32"))),
    }
}

impl State {
    fn hold(&mut self, buffer: Object<dyn MTLBuffer>, adopted: bool) -> Memory {
        let (number, host, bytes) = (self.next, buffer.contents().cast(), buffer.length());
        self.next += 1;
        self.resident.addAllocation(ProtocolObject::from_ref(&*buffer));
        self.changed = true;
        self.memories.insert(number, Held { buffer, adopted });
        Memory { number, host, bytes }
    }

    /// The encoder that is open, or a new one.
    fn encoder(&mut self) -> Result<Object<dyn MTLComputeCommandEncoder>, MetalError> {
        if let Some(open) = &self.open {
            return Ok(open.encoder.clone());
        }
        let refused = |what: &str| MetalError::Failed(format!("no {what}"));
        let commands = self
            .queue
            .commandBuffer()
            .ok_or_else(|| refused("command buffer"))?;
        let encoder = commands
            .computeCommandEncoder()
            .ok_or_else(|| refused("encoder"))?;
        self.open = Some(Encoding {
            commands,
            encoder: encoder.clone(),
        });
        Ok(encoder)
    }

    fn encode(&mut self, launch: &Launch<'_>) -> Result<(), MetalError> {
        let name = launch.kernel.name;
        let wrong = |why: String| MetalError::Failed(format!("{name}: {why}"));
        let pipeline = self.pipelines[launch.number].clone();
        let most = pipeline.maxTotalThreadsPerThreadgroup();
        if launch.shape.threads as usize > most {
            return Err(wrong(format!(
                "a group of {} threads, {most} fit",
                launch.shape.threads
            )));
        }
        let encoder = self.encoder()?;
        encoder.setComputePipelineState(&pipeline);
        for (index, binding) in launch.buffers.iter().enumerate() {
            let held = self.memories.get(&binding.memory);
            let held = held.ok_or_else(|| wrong(format!("{binding:?} is not there")))?;
            // SAFETY: the kernel has this buffer at this index (held by a test over its source), and the offset lies within the buffer.
            unsafe { encoder.setBuffer_offset_atIndex(Some(&held.buffer), binding.offset, index) };
        }
        let constants = NonNull::from(launch.constants).cast::<c_void>();
        // SAFETY: the bytes are those of the kernel's constants, which follow its buffers; they are copied.
        unsafe { encoder.setBytes_length_atIndex(constants, launch.constants.len(), launch.buffers.len()) };
        if launch.shape.shared > 0 {
            // SAFETY: kernels with threadgroup memory of their caller's size have it at index 0.
            unsafe { encoder.setThreadgroupMemoryLength_atIndex(launch.shape.shared as usize, 0) };
        }
        let size = |width: u32, height: u32| MTLSize {
            width: width as usize,
            height: height as usize,
            depth: 1,
        };
        let (x, y) = launch.shape.grid;
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(x, y), size(launch.shape.threads, 1));
        Ok(())
    }

    fn submit(&mut self) {
        let Some(open) = self.open.take() else { return };
        if std::mem::take(&mut self.changed) {
            self.resident.commit();
            self.resident.requestResidency();
        }
        open.encoder.endEncoding();
        open.commands.commit();
        self.sent.push(open.commands);
    }

    fn sound(&self) -> Result<(), MetalError> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(MetalError::Failed(why.clone())),
        }
    }

    /// Waits for all that was sent but the last `but`; the first failure stays.
    fn settle(&mut self, but: usize) {
        let done = self.sent.len().saturating_sub(but);
        for commands in self.sent.drain(..done) {
            commands.waitUntilCompleted();
            if commands.status() == MTLCommandBufferStatus::Error && self.failed.is_none() {
                let why = commands.error().map(|error| text(&error));
                self.failed =
                    Some(why.unwrap_or_else(|| "a command buffer failed and does not say why".into()));
            }
        }
    }

    /// Waits for everything.
    fn finish(&mut self) {
        self.submit();
        self.settle(0);
        for buffer in std::mem::take(&mut self.released) {
            self.resident.removeAllocation(ProtocolObject::from_ref(&*buffer));
            self.changed = true;
        }
    }
}

impl Driver for Apple {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free(&self) -> u64 {
        self.facts
            .memory
            .saturating_sub(self.device.currentAllocatedSize() as u64)
    }

    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, MetalError> {
        let refused = || MetalError::Memory {
            what: what.into(),
            asked: bytes as u64,
            free: self.free(),
            total: self.facts.memory,
        };
        // Metal itself would give more than fits and page it.
        if bytes as u64 > self.free() {
            return Err(refused());
        }
        let buffer = self
            .device
            .newBufferWithLength_options(bytes, MTLResourceOptions::StorageModeShared);
        buffer
            .map(|buffer| self.state().hold(buffer, false))
            .ok_or_else(refused)
    }

    unsafe fn adopt(&self, bytes: &[u8]) -> Result<(Memory, usize), MetalError> {
        let start = bytes.as_ptr() as usize / PAGE * PAGE;
        let offset = bytes.as_ptr() as usize - start;
        let length = (offset + bytes.len()).next_multiple_of(PAGE);
        let pages = NonNull::new(start as *mut c_void);
        // SAFETY: whole pages around bytes that are mapped; the caller keeps them, and nothing is to be freed by Metal.
        let buffer = pages.and_then(|pages| unsafe {
            self.device.newBufferWithBytesNoCopy_length_options_deallocator(
                pages,
                length,
                MTLResourceOptions::StorageModeShared,
                None,
            )
        });
        let buffer = buffer.ok_or_else(|| {
            MetalError::Failed(format!(
                "{length} bytes at {start:#x} are not taken without a copy"
            ))
        })?;
        Ok((self.state().hold(buffer, true), offset))
    }

    fn release(&self, memory: &Memory) {
        let mut state = self.state();
        let Some(held) = state.memories.remove(&memory.number) else {
            return;
        };
        let of_host = held.adopted;
        state.released.push(held.buffer);
        // Command buffers keep the buffers that they use, but not the host's pages.
        if of_host {
            state.finish();
        }
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), MetalError> {
        autoreleasepool(|_| self.state().encode(launch))
    }

    fn submit(&self) -> Result<(), MetalError> {
        autoreleasepool(|_| self.state().submit());
        Ok(())
    }

    fn settle(&self) -> Result<(), MetalError> {
        let mut state = self.state();
        autoreleasepool(|_| state.settle(1));
        state.sound()
    }

    fn wait(&self) -> Result<(), MetalError> {
        let mut state = self.state();
        autoreleasepool(|_| state.finish());
        state.sound()
    }
}

/// What `cargo xtask darwin` wants refused: it shows that this file is checked, and against Metal's real interface.
#[cfg(ds4_planted_type_error)]
fn planted(device: &ProtocolObject<dyn MTLDevice>) -> u32 {
    device.newCommandQueue()
}
