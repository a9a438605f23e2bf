//! A model small enough for ten thousand sessions, and what it answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_model::choice::{Chooser, Shaping};
use ds4_model::sampling::Sampling;
use ds4_model::{Graph, Kv, ModelSlice, Numerics};
use ds4_synth::{Dims, Preset};

/// Of each compression; the window is short, so that it moves.
pub(crate) const LAYERS: usize = 4;
/// First and last layer.
type Span = (usize, usize);

/// Tokens decoded after each prompt.
pub(crate) const DECODED: u32 = 5;

fn model() -> &'static Gguf {
    static MODEL: OnceLock<(tempfile::TempDir, Gguf)> = OnceLock::new();
    &MODEL
        .get_or_init(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("sim.gguf");
            let dims = Dims {
                n_layer: LAYERS,
                ratios: vec![0, 4, 128, 4],
                n_hash: 2,
                n_head: 2,
                head_dim: 96,
                n_expert: 2,
                n_used: 1,
                n_swa: 8,
                ix_topk: 4,
                ..Dims::preset(Preset::Micro)
            };
            ds4_synth::write(&path, &dims, &mut |_, _| {}).expect("written");
            let gguf = Gguf::open(&path).expect("sound");
            (folder, gguf)
        })
        .1
}

/// Layers `first..=last`, loaded once for all simulations.
pub(crate) fn slice(first: usize, last: usize) -> Arc<dyn ModelSlice> {
    static SLICES: Mutex<Vec<(Span, Arc<dyn ModelSlice>)>> = Mutex::new(Vec::new());
    let mut slices = SLICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, slice)) = slices.iter().find(|(span, _)| *span == (first, last)) {
        return Arc::clone(slice);
    }
    let span = LayerSpan {
        first,
        last,
        head: last + 1 == LAYERS,
    };
    let backend = Cpu::new(Some(1), None).expect("a processor");
    let graph = Graph::load(model(), span, Numerics::Canonical, backend, &mut |_, _| {}).expect("sound");
    let slice: Arc<dyn ModelSlice> = Arc::new(graph);
    slices.push(((first, last), Arc::clone(&slice)));
    slice
}

pub(crate) fn whole() -> Arc<dyn ModelSlice> {
    slice(0, LAYERS - 1)
}

/// The greedy tokens after `prompt`, by the model alone.
pub(crate) fn answer(prompt: &[u32]) -> Vec<u32> {
    static ANSWERS: OnceLock<Mutex<HashMap<Vec<u32>, Vec<u32>>>> = OnceLock::new();
    let answers = ANSWERS.get_or_init(Mutex::default);
    if let Some(known) = answers.lock().unwrap_or_else(PoisonError::into_inner).get(prompt) {
        return known.clone();
    }
    let computed = compute(prompt);
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    answers.insert(prompt.to_vec(), computed.clone());
    computed
}

fn compute(prompt: &[u32]) -> Vec<u32> {
    let slice = whole();
    let mut kv = Kv::new(&slice.info().layout, LayerSpan::full(LAYERS));
    let mut chooser = Chooser::new(&Sampling::GREEDY, Shaping::default());
    let (mut tokens, mut next) = (Vec::new(), prompt.to_vec());
    for _ in 0..DECODED {
        let mut hidden = slice.embed(&next).expect("known tokens");
        slice.forward(&next, &mut hidden, &mut kv).expect("its layers");
        let logits = slice.logits(&hidden, hidden.tokens() - 1).expect("its head");
        let token = chooser.choose(&logits).expect("a token").token;
        tokens.push(token);
        next = vec![token];
    }
    tokens
}
