//! One GPU: finding it, its memory, and what the host writes and reads there.

use std::sync::Arc;

use crate::error::{check, size};
use crate::{Buffer, Driver, Element, Facts, Launch, MetalError, Shape, Slice};

/// An open device: one sequence of launches, in the order of the calls.
///
/// Host and device share memory, so nothing is copied between them; in turn, what the host writes is there at once, before launches that are not done. See
/// [`Device::write`].
#[derive(Debug)]
pub struct Device {
    driver: Arc<dyn Driver>,
    matrices: bool,
}

impl Device {
    /// Opens the system's device and compiles the kernels.
    ///
    /// # Errors
    /// Says what is missing: macOS, a device of Apple silicon, or what its compiler refused.
    #[cfg(target_os = "macos")]
    pub fn open() -> Result<Self, MetalError> {
        Ok(Self::on(Arc::new(crate::apple::Apple::open()?)))
    }

    /// Opens the system's device and compiles the kernels.
    ///
    /// # Errors
    /// Says what is missing: macOS, a device of Apple silicon, or what its compiler refused.
    #[cfg(not(target_os = "macos"))]
    pub const fn open() -> Result<Self, MetalError> {
        Err(MetalError::NotMac {
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
        })
    }

    /// A device on another driver: the emulator's.
    #[must_use]
    pub fn on(driver: Arc<dyn Driver>) -> Self {
        let matrices = driver.facts().matrices;
        Self { driver, matrices }
    }

    /// The same device by plain kernels alone, which give the same bits.
    #[must_use]
    pub fn plain(&self) -> Self {
        Self {
            driver: self.driver.clone(),
            matrices: false,
        }
    }

    /// Whether many tokens go through `simdgroup_matrix`.
    #[must_use]
    pub const fn matrices(&self) -> bool {
        self.matrices
    }

    /// What the device is.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    /// Free and total bytes now.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        (self.driver.free(), self.facts().memory)
    }

    /// Memory for `len` elements, its content undefined. `what` is named when the device has no room.
    ///
    /// # Errors
    /// When there is no room, with the bytes asked for and free.
    pub fn allocate<T: Element>(&self, what: &'static str, len: usize) -> Result<Buffer<T>, MetalError> {
        let memory = self.driver.allocate(what, (len * size_of::<T>()).max(1))?;
        Ok(Buffer::new(self.driver.clone(), memory, 0, len))
    }

    /// A buffer with `values`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn upload<T: Element>(&self, what: &'static str, values: &[T]) -> Result<Buffer<T>, MetalError> {
        let buffer = self.allocate(what, values.len())?;
        self.write(values, buffer.all())?;
        Ok(buffer)
    }

    /// Bytes of the host as the device reads them, without a copy.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// The bytes, and the pages that they lie on, must stay as they are until the buffer is dropped and everything launched before is done.
    pub(crate) unsafe fn adopt(&self, bytes: &[u8]) -> Result<Buffer<u8>, MetalError> {
        // SAFETY: as the caller says.
        let (memory, offset) = unsafe { self.driver.adopt(bytes) }?;
        Ok(Buffer::new(self.driver.clone(), memory, offset, bytes.len()))
    }

    /// Writes from the host, at once: no launch that is not done may use the slice.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn write<T: Element>(&self, values: &[T], to: Slice<'_, T>) -> Result<(), MetalError> {
        let to = to.exactly("copy to the device", "elements", values.len())?;
        // SAFETY: the slice has as many elements, memory of the host does not overlap what the driver gave, and no launch uses it now.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr().cast::<u8>(),
                to.host().as_ptr(),
                size_of_val(values),
            )
        };
        Ok(())
    }

    /// Waits for everything that was launched and copies to the host.
    ///
    /// # Errors
    /// When the lengths differ or a kernel failed.
    pub fn read<T: Element>(&self, from: Slice<'_, T>, values: &mut [T]) -> Result<(), MetalError> {
        let from = from.exactly("copy from the device", "elements", values.len())?;
        self.wait()?;
        // SAFETY: the slice has as many elements, any bytes are values, and every launch is done.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.host().as_ptr(),
                values.as_mut_ptr().cast::<u8>(),
                size_of_val(values),
            );
        }
        Ok(())
    }

    /// The values of a slice.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn download<T: Element>(&self, from: Slice<'_, T>) -> Result<Vec<T>, MetalError> {
        let mut values = vec![T::default(); from.len()];
        self.read(from, &mut values)?;
        Ok(values)
    }

    /// Copies within the device, in the order of the launches.
    ///
    /// # Errors
    /// When the lengths differ or the launch fails.
    pub fn copy<T: Element>(&self, from: Slice<'_, T>, to: Slice<'_, T>) -> Result<(), MetalError> {
        const NAME: &str = "copy within the device";
        check(NAME, "elements", from.len(), to.len())?;
        let (from, to) = (from.cast::<u8>(), to.cast::<u8>());
        let bytes = size(NAME, "bytes", from.len())?;
        self.copy_bytes(Shape::threads(from.len(), 256), from.into(), to.into(), bytes)
    }

    /// Sends what was launched to the device, which starts on it while the host goes on.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn submit(&self) -> Result<(), MetalError> {
        self.driver.submit()
    }

    /// Waits until everything that was submitted before the last [`Device::submit`] is done, which keeps the device busy meanwhile: who submits in pieces and
    /// settles after each stays two of them ahead, no more, and loses no time.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn settle(&self) -> Result<(), MetalError> {
        self.driver.settle()
    }

    /// Waits for everything that was launched; errors of kernels show here.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn wait(&self) -> Result<(), MetalError> {
        self.driver.wait()
    }

    pub(crate) fn launch(&self, launch: &Launch<'_>) -> Result<(), MetalError> {
        if launch.shape.is_empty() {
            return Ok(());
        }
        self.driver.launch(launch)
    }
}
