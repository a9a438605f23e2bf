//! Models on both back ends.

use std::sync::Arc;

pub use ds4_emu::{Turn, turn};
use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_kernels_cuda::Device;
use ds4_model::{Graph, ModelError, Numerics};
use ds4_model_cuda::{CudaSlice, Decode};
use ds4_synth::{Dims, Preset};
use tempfile::NamedTempFile;

/// A model file.
pub struct Model {
    _file: NamedTempFile,
    gguf: Gguf,
}

impl Model {
    /// The model of the golden logits.
    pub fn golden() -> Self {
        let file = NamedTempFile::new().unwrap();
        crate::model::write(file.path(), &crate::model::config());
        Self {
            gguf: Gguf::open(file.path()).unwrap(),
            _file: file,
        }
    }

    /// The smallest preset, with some shapes changed.
    pub fn micro(changes: &[(&str, &str)]) -> Self {
        let file = NamedTempFile::new().unwrap();
        let mut dims = Dims::preset(Preset::Micro);
        changes
            .iter()
            .for_each(|(key, value)| dims.set(key, value).unwrap());
        ds4_synth::write(file.path(), &dims, &mut |_, _| {}).unwrap();
        Self {
            gguf: Gguf::open(file.path()).unwrap(),
            _file: file,
        }
    }

    pub fn cpu(&self, span: LayerSpan) -> Graph<Cpu> {
        let cpu = Cpu::new(Some(2), None).unwrap();
        Graph::load(&self.gguf, span, Numerics::Canonical, cpu, &mut |_, _| {}).unwrap()
    }

    pub fn cuda(&self, span: LayerSpan, turn: &Turn) -> CudaSlice {
        self.try_cuda(span, turn).unwrap()
    }

    /// The same, decoding by launches one by one.
    pub fn plain(&self, span: LayerSpan, turn: &Turn) -> CudaSlice {
        self.load(span, &turn.device, Decode::Launches, &mut |_, _| {})
            .unwrap()
    }

    pub fn try_cuda(&self, span: LayerSpan, turn: &Turn) -> Result<CudaSlice, ModelError> {
        self.load(span, &turn.device, Decode::Graphs, &mut |_, _| {})
    }

    pub fn load(
        &self,
        span: LayerSpan,
        device: &Arc<Device>,
        decode: Decode,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CudaSlice, ModelError> {
        let device = Arc::clone(device);
        CudaSlice::load(&self.gguf, span, Numerics::Canonical, device, decode, progress)
    }
}

/// Token ids below `vocabulary` that repeat nowhere in order.
pub fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary as u32
    };
    (0..count).map(|_| next()).collect()
}

/// Compares bits, and says where they differ first.
#[track_caller]
pub fn assert_bits(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let differ = expected
        .iter()
        .zip(found)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    assert!(
        differ.is_none(),
        "{what}: value {differ:?} of {} differs",
        expected.len()
    );
}
