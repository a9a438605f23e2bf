//! One GPU: finding it, its memory, copies to and from it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DevicePtr, result, sys};
use cudarc::nvrtc::Ptx;

use crate::graph::not_noted;
use crate::launch::Functions;
use crate::{Buffer, CudaError, Element, Slice};

/// Device code for every architecture that this program was built for; empty when it was built without.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ds4.fatbin"));

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether it shares the host's memory (GB10, Jetson).
    pub unified: bool,
    /// Largest dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// CUDA version of the driver, as 1000 * major + 10 * minor.
    pub driver: i32,
}

impl Facts {
    /// Whether this is the emulator of the tests, whose times mean nothing.
    #[must_use]
    pub fn emulated(&self) -> bool {
        self.name == EMULATED
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(
            f,
            "{} (sm_{major}{minor}, {} multiprocessors, {} bytes{}, driver {}.{})",
            self.name,
            self.multiprocessors,
            self.memory,
            if self.unified { " shared with the host" } else { "" },
            self.driver / 1000,
            self.driver % 1000 / 10,
        )
    }
}

/// Whether the driver's library can be loaded.
#[must_use]
pub fn present() -> bool {
    // SAFETY: loads the system's own driver library, whose initialisers take no input.
    unsafe { sys::is_culib_present() }
}

/// An open device: one stream of work, in the order of the calls, and one of copies beside it.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    pub(crate) functions: Functions,
    facts: Facts,
    /// Where the last [`Device::settle`] stood.
    settled: Mutex<Option<CudaEvent>>,
}

impl Device {
    /// Opens the device and loads the kernels.
    ///
    /// # Errors
    /// Says what was found and what is missing: driver, device, or kernels for its architecture.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        if !present() {
            return Err(CudaError::NoDriver);
        }
        let count = match CudaContext::device_count() {
            Ok(count) => usize::try_from(count).unwrap_or(0),
            Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => 0,
            Err(error) => return Err(CudaError::of("cuInit")(error)),
        };
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(CudaError::of("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: all work is on one stream, so no event has to order reads after writes; copies beside it order themselves.
        unsafe { context.disable_event_tracking() };
        let facts = facts(&context)?;
        let functions = load(&context, &facts)?;
        let stream = || context.new_stream().map_err(CudaError::of("cuStreamCreate"));
        let (stream, copies) = (stream()?, stream()?);
        Ok(Self {
            context,
            stream,
            copies,
            functions,
            facts,
            settled: Mutex::default(),
        })
    }

    /// What the device is.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The stream of copies: of weights to the device at first, of rows to the host later.
    pub(crate) const fn copies(&self) -> &Arc<CudaStream> {
        &self.copies
    }

    /// Free and total bytes now.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(CudaError::of("cuMemGetInfo"))?;
        Ok((free as u64, total as u64))
    }

    /// Memory for `len` elements, its content undefined. `what` is named when the device has no room.
    ///
    /// # Errors
    /// When there is no room, with the bytes asked for and free.
    pub fn allocate<T: Element>(&self, what: &'static str, len: usize) -> Result<Buffer<T>, CudaError> {
        let bytes = len * size_of::<T>();
        // SAFETY: any content is a value of `T`.
        let allocated = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        match allocated {
            Ok(slice) => {
                let address = slice.device_ptr(&self.stream).0;
                Ok(Buffer::new(slice, address, len))
            }
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory()?;
                Err(CudaError::Memory {
                    what: what.into(),
                    asked: bytes as u64,
                    free,
                    total,
                })
            }
            Err(error) => Err(CudaError::of("cuMemAlloc")(error)),
        }
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// When there is no room or the copy fails.
    pub fn upload<T: Element>(&self, what: &'static str, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.allocate(what, values.len())?;
        self.write(values, buffer.all())?;
        Ok(buffer)
    }

    /// Copies from the host, behind the work submitted so far. The values may be dropped when this returns.
    ///
    /// # Errors
    /// When the lengths differ or the copy fails.
    pub fn write<T: Element>(&self, values: &[T], to: Slice<'_, T>) -> Result<(), CudaError> {
        not_noted("copy to the device")?;
        let to = to.exactly("copy to the device", "elements", values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the slice has room for the values; pageable memory is read before the call returns.
        unsafe { result::memcpy_htod_async(to.address(), values, self.stream.cu_stream()) }
            .map_err(CudaError::of("cuMemcpyHtoDAsync"))
    }

    /// Waits for the work submitted so far and copies to the host.
    ///
    /// # Errors
    /// When the lengths differ, the copy fails, or a kernel before it failed.
    pub fn read<T: Element>(&self, from: Slice<'_, T>, values: &mut [T]) -> Result<(), CudaError> {
        not_noted("copy from the device")?;
        let from = from.exactly("copy from the device", "elements", values.len())?;
        if !values.is_empty() {
            self.bind()?;
            // SAFETY: the slice has as many elements, and the stream is waited for below before the values are used.
            unsafe { result::memcpy_dtoh_async(values, from.address(), self.stream.cu_stream()) }
                .map_err(CudaError::of("cuMemcpyDtoHAsync"))?;
        }
        self.wait()
    }

    /// The values of a slice.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn download<T: Element>(&self, from: Slice<'_, T>) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); from.len()];
        self.read(from, &mut values)?;
        Ok(values)
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// When the lengths differ or the copy fails.
    pub fn copy<T: Element>(&self, from: Slice<'_, T>, to: Slice<'_, T>) -> Result<(), CudaError> {
        not_noted("copy within the device")?;
        let to = to.exactly("copy within the device", "elements", from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both slices have as many elements.
        unsafe {
            result::memcpy_dtod_async(
                to.address(),
                from.address(),
                from.len() * size_of::<T>(),
                self.stream.cu_stream(),
            )
        }
        .map_err(CudaError::of("cuMemcpyDtoDAsync"))
    }

    /// Waits for the work submitted so far; errors of kernels show here.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        not_noted("wait for the device")?;
        self.stream
            .synchronize()
            .map_err(CudaError::of("cuStreamSynchronize"))
    }

    /// Waits until the work submitted before the last call of this is done. What came since keeps the device busy meanwhile, so who submits in pieces and
    /// settles after each stays two of them ahead, no more, and loses no time.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn settle(&self) -> Result<(), CudaError> {
        not_noted("wait for the device")?;
        let here = self
            .stream
            .record_event(None)
            .map_err(CudaError::of("cuEventRecord"))?;
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        match settled.replace(here) {
            Some(before) => before.synchronize().map_err(CudaError::of("cuEventSynchronize")),
            None => Ok(()),
        }
    }

    /// How long the device takes for what `work` submits, by its own clock.
    ///
    /// # Errors
    /// When `work` fails or a kernel failed.
    pub fn time(
        &self,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<std::time::Duration, CudaError> {
        const TIMED: Option<sys::CUevent_flags> = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let record = || {
            self.stream
                .record_event(TIMED)
                .map_err(CudaError::of("cuEventRecord"))
        };
        let start = record()?;
        work()?;
        let milliseconds = start.elapsed_ms(&record()?);
        let milliseconds = milliseconds.map_err(CudaError::of("cuEventElapsedTime"))?;
        Ok(std::time::Duration::from_secs_f64(
            f64::from(milliseconds.max(0.0)) / 1e3,
        ))
    }

    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.context
            .bind_to_thread()
            .map_err(CudaError::of("cuCtxSetCurrent"))
    }
}

fn facts(context: &Arc<CudaContext>) -> Result<Facts, CudaError> {
    let attribute = |which| {
        context
            .attribute(which)
            .map_err(CudaError::of("cuDeviceGetAttribute"))
    };
    let mut driver = 0;
    // SAFETY: writes one integer.
    let version = unsafe { sys::cuDriverGetVersion(&raw mut driver) };
    version.result().map_err(CudaError::of("cuDriverGetVersion"))?;
    Ok(Facts {
        name: context.name().map_err(CudaError::of("cuDeviceGetName"))?,
        capability: context
            .compute_capability()
            .map_err(CudaError::of("cuDeviceGetAttribute"))?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.unsigned_abs(),
        memory: context.total_mem().map_err(CudaError::of("cuDeviceTotalMem"))? as u64,
        unified: attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
        shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.unsigned_abs(),
        driver,
    })
}

const LARGEST_SHARED: sys::CUfunction_attribute_enum =
    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
/// The emulator has the kernels linked in and takes any image.
const EMULATED: &str = "emulated on the CPU";

fn load(context: &Arc<CudaContext>, facts: &Facts) -> Result<Functions, CudaError> {
    let image = match (IMAGE, facts.name.as_str()) {
        ([], EMULATED) => &[0],
        ([], _) => return Err(CudaError::NoKernels),
        (image, _) => image,
    };
    let (major, minor) = facts.capability;
    let module = context
        .load_module(Ptx::from_binary(image.to_vec()))
        .map_err(|source| CudaError::Architecture {
            major,
            minor,
            name: facts.name.clone(),
            source,
        })?;
    let functions = Functions::load(&module)?;
    // Blocks that share decoded rows take more than the 48 KiB that need no opting in.
    for function in [&functions.attend, &functions.index_scores] {
        function
            .set_attribute(LARGEST_SHARED, facts.shared.cast_signed())
            .map_err(CudaError::of("cuFuncSetAttribute"))?;
    }
    Ok(functions)
}
