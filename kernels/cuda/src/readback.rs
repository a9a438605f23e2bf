//! Copies to the host beside the computing.

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use crate::graph::not_noted;
use crate::pinned::Pinned;
use crate::{CudaError, Device, Slice};

/// Host memory that copies reach while the host goes on; it grows to what was asked of it and stays.
#[derive(Debug, Default)]
pub struct Staging(Option<Pinned>);

/// Copies of one pass to the host, on a stream of their own: each waits for the work that was submitted before it, and what is submitted after it
/// does not wait for the copy.
#[derive(Debug)]
pub struct Readback<'a> {
    device: &'a Device,
    stream: &'a Arc<CudaStream>,
    staging: &'a mut Pinned,
    used: usize,
    pending: bool,
}

impl<'a> Readback<'a> {
    /// Room for `bytes` bytes in all.
    ///
    /// # Errors
    /// When the host has no room to lock.
    pub fn new(device: &'a Device, staging: &'a mut Staging, bytes: usize) -> Result<Self, CudaError> {
        let pinned = match staging.0.take() {
            Some(pinned) if pinned.len() >= bytes => pinned,
            smaller => {
                drop(smaller);
                // A power of two: sessions that grow do not ask again and again.
                Pinned::new(device, bytes.next_power_of_two())?
            }
        };
        Ok(Self {
            device,
            stream: device.copies(),
            staging: staging.0.insert(pinned),
            used: 0,
            pending: false,
        })
    }

    /// Copies `from` behind the bytes that were copied before. Its memory must stay as it is until [`Readback::bytes`] returns.
    ///
    /// # Errors
    /// When there is no room for it or a call fails.
    pub fn copy(&mut self, from: Slice<'_, u8>) -> Result<(), CudaError> {
        not_noted("copy to the host")?;
        let (len, free) = (from.len(), self.staging.len() - self.used);
        if len > free {
            return Err(CudaError::Shape {
                operation: "copy to the host",
                field: "bytes",
                expected: free,
                found: len,
            });
        }
        if len == 0 {
            return Ok(());
        }
        self.stream
            .join(self.device.stream())
            .map_err(CudaError::of("cuStreamWaitEvent"))?;
        self.pending = true;
        // Nobody reads it before the stream was waited for.
        let to = self.staging.part_mut(self.used..self.used + len);
        // SAFETY: the slice has as many bytes, and the destination outlives the copy: dropping this waits for it.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.stream.cu_stream()) }
            .map_err(CudaError::of("cuMemcpyDtoHAsync"))?;
        self.used += len;
        Ok(())
    }

    /// Waits for the copies; all bytes in their order.
    ///
    /// # Errors
    /// When a copy, or work before it, failed.
    pub fn bytes(&mut self) -> Result<&[u8], CudaError> {
        self.wait()?;
        Ok(self.staging.part(0..self.used))
    }

    fn wait(&mut self) -> Result<(), CudaError> {
        if std::mem::take(&mut self.pending) {
            self.stream
                .synchronize()
                .map_err(CudaError::of("cuStreamSynchronize"))?;
        }
        Ok(())
    }
}

impl Drop for Readback<'_> {
    fn drop(&mut self) {
        // Of a pass that failed; the device tells the next call too.
        let _ = self.wait();
    }
}
