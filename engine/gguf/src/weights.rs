//! The mapped bytes of some layers: nothing else of the file enters memory.

use std::collections::BTreeMap;

use memmap2::{Mmap, MmapOptions};

use crate::{Gguf, GgufError, LayerSpan, ModelConfig, TensorInfo, tensors};

/// How much is touched between two reports of progress.
const STEP: usize = 16 << 20;
/// Tensors further apart than this get maps of their own; 4 KiB pages would be mapped for nothing otherwise.
const GAP: u64 = 1 << 20;

/// One tensor and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name, dimensions, format.
    pub info: &'a TensorInfo,
    /// Exactly `info.bytes` bytes.
    pub data: &'a [u8],
}

#[derive(Debug)]
struct Place {
    map: usize,
    start: usize,
    info: TensorInfo,
}

/// The checked tensors of one [`LayerSpan`], or of the draft head, mapped.
#[derive(Debug)]
pub struct Weights {
    maps: Vec<Mmap>,
    places: Vec<Place>,
    slots: BTreeMap<String, usize>,
}

impl Weights {
    /// Checks and maps the tensors of `span`, then reads every page once, so that the first request does not wait for the disk.
    /// `progress(done, total)` is called in bytes, first with 0.
    ///
    /// # Errors
    /// When a tensor is missing or not what `config` implies, or when the file cannot be mapped.
    pub fn map(
        gguf: &Gguf,
        config: &ModelConfig,
        span: LayerSpan,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, GgufError> {
        let weights = Self::map_unread(gguf, config, span)?;
        weights.touch(progress);
        Ok(weights)
    }

    /// Checks and maps the tensors of `span`. The system reads ahead; each page is read when somebody comes to it, or by [`Weights::touch`].
    ///
    /// # Errors
    /// As [`Weights::map`].
    pub fn map_unread(gguf: &Gguf, config: &ModelConfig, span: LayerSpan) -> Result<Self, GgufError> {
        Self::map_all(gguf, tensors::check(gguf, config, span)?)
    }

    /// The same for the draft head of a model of `config`.
    ///
    /// # Errors
    /// As [`Weights::map`].
    pub fn map_draft(
        gguf: &Gguf,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, GgufError> {
        let weights = Self::map_all(gguf, tensors::check_draft(gguf, config)?)?;
        weights.touch(progress);
        Ok(weights)
    }

    fn map_all(gguf: &Gguf, mut wanted: Vec<&TensorInfo>) -> Result<Self, GgufError> {
        wanted.sort_by_key(|tensor| tensor.offset);
        let mut weights = Self {
            maps: Vec::new(),
            places: Vec::new(),
            slots: BTreeMap::new(),
        };
        for run in runs(&wanted) {
            weights.add(gguf, run)?;
        }
        Ok(weights)
    }

    fn add(&mut self, gguf: &Gguf, run: &[&TensorInfo]) -> Result<(), GgufError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let length = last.offset + last.bytes - first.offset;
        let too_large = || GgufError::unexpected(&first.name, "a size that fits the address space", length);
        let bytes = usize::try_from(length).map_err(|_| too_large())?;
        // SAFETY: the map is read-only, the range was checked to lie within the file, and model files are replaced by rename, never
        // rewritten in place; a file truncated by another process while it is mapped ends this process, as with any mapped file.
        let map = unsafe {
            MmapOptions::new()
                .offset(first.offset)
                .len(bytes)
                .map(gguf.file())
        };
        let map = map.map_err(|source| GgufError::Io {
            path: gguf.path().to_owned(),
            source,
        })?;
        // The system reads ahead while the pages are touched or copied; where it cannot, they are read one by one.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::WillNeed);
        let number = self.maps.len();
        for info in run {
            let start = usize::try_from(info.offset - first.offset).map_err(|_| too_large())?;
            self.slots.insert(info.name.clone(), self.places.len());
            self.places.push(Place {
                map: number,
                start,
                info: (*info).clone(),
            });
        }
        self.maps.push(map);
        Ok(())
    }

    /// Reads every page once. `progress(done, total)` in bytes, first with 0.
    pub fn touch(&self, progress: &mut dyn FnMut(u64, u64)) {
        let total = self.bytes();
        let mut done = 0;
        progress(0, total);
        for part in self.maps.iter().flat_map(|map| map.chunks(STEP)) {
            let sum = part
                .iter()
                .step_by(4096)
                .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            std::hint::black_box(sum);
            done += part.len() as u64;
            progress(done, total);
        }
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }

    /// Where the tensor called `name` is kept, for [`Weights::view`]; `None` when the span does not have it.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.get(name).copied()
    }

    /// The tensor of a slot that [`Weights::slot`] gave.
    ///
    /// # Panics
    /// When the slot is of another file.
    #[must_use]
    pub fn view(&self, slot: usize) -> TensorView<'_> {
        let place = &self.places[slot];
        #[allow(clippy::cast_possible_truncation)] // the map's length is a usize
        let end = place.start + place.info.bytes as usize;
        TensorView {
            info: &place.info,
            data: &self.maps[place.map][place.start..end],
        }
    }

    /// The tensor called `name`, when the span has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.slot(name).map(|slot| self.view(slot))
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// When the span does not have it.
    pub fn require(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.get(name)
            .ok_or_else(|| GgufError::MissingTensor(name.to_owned()))
    }
}

/// Groups of neighbours, in file order: one map each.
fn runs<'a, 'b>(sorted: &'b [&'a TensorInfo]) -> impl Iterator<Item = &'b [&'a TensorInfo]> {
    sorted.chunk_by(|left, right| right.offset - (left.offset + left.bytes) < GAP)
}
