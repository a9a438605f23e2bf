//! Weights on their way to the device: the host reads a piece of the mapped file into page-locked memory while the piece before goes up on the stream of copies.

use std::fmt;

use cudarc::driver::{CudaEvent, result};

use crate::graph::not_noted;
use crate::launch::Shape;
use crate::pinned::Pinned;
use crate::{Buffer, CudaError, Device, Element, Slice};

/// Bytes of a piece: what the reading of a file is reported by too. Chosen, not measured: no device was at hand.
const PIECE: usize = 16 << 20;
/// More than a block of any format.
const LEAST: usize = 512;
/// Pieces at a time: one is read while the other goes up.
const SLOTS: usize = 2;

/// How weights reached the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through page-locked memory of so many bytes.
    Staged(usize),
    /// From the mapped file, by a device that shares the host's memory: page-locked memory between would be one copy more of everything.
    Shared,
    /// From the mapped file through what the driver keeps for that, since the host locks no pages: how many bytes were asked for, and why not.
    Refused(usize, String),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Staged(bytes) => write!(
                f,
                "through {bytes} bytes of page-locked memory, beside the reading"
            ),
            Self::Shared => write!(f, "from the mapped file: the device shares the host's memory"),
            Self::Refused(bytes, reason) => write!(
                f,
                "from the mapped file, piece after piece: {bytes} bytes of page-locked memory were refused ({reason})"
            ),
        }
    }
}

/// Copies of what is read to the device, in order. Its memory is given back when it is dropped.
pub struct Uploads<'a> {
    device: &'a Device,
    way: Way,
    slots: Vec<Slot>,
    next: usize,
    /// Bytes of the largest piece.
    piece: usize,
    landed: u64,
    progress: &'a mut dyn FnMut(u64),
}

/// Where a piece lies.
struct Slot {
    /// On the host; none when it is copied from where it is mapped.
    pinned: Option<Pinned>,
    /// On the device, for blocks whose scales are then put apart.
    blocks: Buffer<u8>,
    /// The copy out of the host's memory is done.
    copied: CudaEvent,
    /// The kernel that reads the blocks is done.
    sorted: CudaEvent,
    /// Bytes of which nobody knows yet that they are there.
    underway: u64,
}

/// How blocks are sorted: bytes of one, and where those begin that are stored apart, and how many.
#[derive(Clone, Copy)]
pub(crate) struct Split {
    pub(crate) block: usize,
    pub(crate) at: usize,
    pub(crate) head: usize,
}

impl<'a> Uploads<'a> {
    /// For `bytes` bytes in all. `progress` is told how many of them are on the device, when the host knows.
    ///
    /// # Errors
    /// When the device has no room for a piece, or a call fails; not when the host locks no pages, which [`Uploads::finish`] tells.
    pub fn new(
        device: &'a Device,
        bytes: usize,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, CudaError> {
        let piece = bytes.div_ceil(SLOTS).clamp(LEAST, PIECE);
        let (way, pinned) = pinned(device, piece)?;
        let slot = |pinned| Slot::new(device, pinned, piece);
        Ok(Self {
            device,
            way,
            slots: pinned.into_iter().map(slot).collect::<Result<_, _>>()?,
            next: 0,
            piece,
            landed: 0,
            progress,
        })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &'a Device {
        self.device
    }

    /// Bytes of which the host knows that they are on the device.
    #[must_use]
    pub const fn landed(&self) -> u64 {
        self.landed
    }

    /// Bytes of the device that are taken until a model of `bytes` bytes is there.
    #[must_use]
    pub const fn room(bytes: u64) -> u64 {
        let most = (SLOTS * PIECE) as u64;
        if bytes < most { bytes } else { most }
    }

    /// Copies `values` to `to`. They may be dropped when this returns.
    ///
    /// # Errors
    /// When the lengths differ or a call fails.
    pub fn write<T: Element>(&mut self, values: &[T], to: Slice<'_, T>) -> Result<(), CudaError> {
        let to = to.exactly("copy to the device", "elements", values.len())?;
        // SAFETY: plain numbers without padding, as many bytes as they have.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        let to = Slice::at(to.address(), bytes.len());
        self.follow()?;
        for (number, bytes) in bytes.chunks(self.piece).enumerate() {
            let from = number * self.piece;
            self.put(bytes, Some(to.range(from..from + bytes.len())))?;
        }
        Ok(())
    }

    /// Copies blocks, and puts what `split` says apart on the device.
    pub(crate) fn blocks(
        &mut self,
        data: &[u8],
        split: Split,
        heads: Slice<'_, u8>,
        body: Slice<'_, u8>,
    ) -> Result<(), CudaError> {
        let Split { block, at, head } = split;
        self.follow()?;
        let part = self.piece / block * block;
        for (number, data) in data.chunks(part).enumerate() {
            let (from, count) = (number * (part / block), data.len() / block);
            let slot = self.put(data, None)?;
            #[allow(clippy::cast_possible_truncation)] // a block has a few hundred bytes
            self.device.split_blocks(
                Shape::threads(data.len(), 256),
                self.slots[slot].blocks.all().range(0..data.len()).into(),
                heads.range(from * head..(from + count) * head).into(),
                body.range(from * (block - head)..(from + count) * (block - head))
                    .into(),
                data.len() as u64,
                block as u32,
                at as u32,
                head as u32,
            )?;
            let sorted = self.slots[slot].sorted.record(self.device.stream());
            sorted.map_err(CudaError::of("cuEventRecord"))?;
        }
        Ok(())
    }

    /// Waits until everything is there; how it came.
    ///
    /// # Errors
    /// When a copy or a kernel failed.
    pub fn finish(mut self) -> Result<Way, CudaError> {
        for slot in 0..self.slots.len() {
            self.arrived(slot)?;
        }
        self.device.wait()?;
        Ok(self.way.clone())
    }

    /// Copies come after the memory that they go to is there: it is allocated in the order of the stream that computes.
    fn follow(&self) -> Result<(), CudaError> {
        not_noted("copy to the device")?;
        let (copies, stream) = (self.device.copies(), self.device.stream());
        copies.join(stream).map_err(CudaError::of("cuStreamWaitEvent"))
    }

    /// Sends a piece to `to`, or to where its slot keeps blocks. What is submitted from now on comes after it.
    fn put(&mut self, bytes: &[u8], to: Option<Slice<'_, u8>>) -> Result<usize, CudaError> {
        let number = self.next;
        self.next = (number + 1) % self.slots.len();
        // The host is about to write what the copy reads.
        self.arrived(number)?;
        let (device, slot) = (self.device, &mut self.slots[number]);
        let to = to.unwrap_or_else(|| slot.blocks.all().range(0..bytes.len()));
        let Some(pinned) = &mut slot.pinned else {
            device.write(bytes, to)?;
            self.report(bytes.len() as u64);
            return Ok(number);
        };
        let staged = pinned.part_mut(0..bytes.len());
        staged.copy_from_slice(bytes);
        let (copies, stream) = (device.copies(), device.stream());
        copies
            .wait(&slot.sorted)
            .map_err(CudaError::of("cuStreamWaitEvent"))?;
        // SAFETY: both have as many bytes; the staged ones stay as they are until the event below was waited for.
        unsafe { result::memcpy_htod_async(to.address(), staged, copies.cu_stream()) }
            .map_err(CudaError::of("cuMemcpyHtoDAsync"))?;
        slot.underway = bytes.len() as u64;
        slot.copied
            .record(copies)
            .map_err(CudaError::of("cuEventRecord"))?;
        // Whatever comes after may use or free what was written.
        stream
            .wait(&slot.copied)
            .map_err(CudaError::of("cuStreamWaitEvent"))?;
        Ok(number)
    }

    /// Waits until the slot's memory on the host is free.
    fn arrived(&mut self, number: usize) -> Result<(), CudaError> {
        let slot = &mut self.slots[number];
        if slot.underway > 0 {
            slot.copied
                .synchronize()
                .map_err(CudaError::of("cuEventSynchronize"))?;
            let bytes = std::mem::take(&mut slot.underway);
            self.report(bytes);
        }
        Ok(())
    }

    fn report(&mut self, bytes: u64) {
        self.landed += bytes;
        (self.progress)(self.landed);
    }
}

/// Page-locked memory for pieces where that is of use and where the host has it.
fn pinned(device: &Device, piece: usize) -> Result<(Way, Vec<Option<Pinned>>), CudaError> {
    if device.facts().unified {
        return Ok((Way::Shared, vec![None]));
    }
    let slots = (0..SLOTS).map(|_| Pinned::new(device, piece).map(Some));
    match slots.collect() {
        Ok(slots) => Ok((Way::Staged(SLOTS * piece), slots)),
        Err(error) if error.is_sticky() => Err(error),
        Err(error) => Ok((Way::Refused(SLOTS * piece, error.to_string()), vec![None])),
    }
}

impl Slot {
    fn new(device: &Device, pinned: Option<Pinned>, piece: usize) -> Result<Self, CudaError> {
        let event = || {
            device
                .context()
                .new_event(None)
                .map_err(CudaError::of("cuEventCreate"))
        };
        Ok(Self {
            pinned,
            blocks: device.allocate("staging of weights", piece)?,
            copied: event()?,
            sorted: event()?,
            underway: 0,
        })
    }
}

impl Drop for Uploads<'_> {
    fn drop(&mut self) {
        // Of a load that failed: the copies still read what is given back. The device tells the next call too.
        if self.slots.iter().any(|slot| slot.underway > 0) {
            let _ = self.device.copies().synchronize();
        }
    }
}

impl fmt::Debug for Uploads<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on the device, {}", self.landed, self.way)
    }
}
