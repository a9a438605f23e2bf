//! Every kernel beside its scalar reference, and a whole model beside the CPU back end: the same bits, or it is wrong.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_kernels_cuda::Device;
use ds4_kernels_suite::{Bench, Random, cases};
use ds4_model::{CompleteKv, Graph, Hidden, Kv, ModelSlice, Numerics};
use ds4_model_cuda::{CudaSlice, Decode};
use ds4_synth::{Dims, Preset};

/// One thing that was compared, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What.
    pub name: String,
    /// Kernels that took part.
    pub kernels: String,
    /// `None` where all bits are those of the reference.
    pub wrong: Option<String>,
}

impl Verdict {
    /// As a row: name, kernels, verdict.
    #[must_use]
    pub fn row(&self) -> Vec<String> {
        let verdict = self.wrong.clone().unwrap_or_else(|| "equal bits".into());
        vec![self.name.clone(), self.kernels.clone(), verdict]
    }
}

/// Every case of the suite with each number of tokens, operands drawn from `seed`.
#[must_use]
pub fn kernels(device: &Device, tokens: &[usize], seed: u64) -> Vec<Verdict> {
    let run = |case: &ds4_kernels_suite::Case| {
        let wrong = tokens.iter().find_map(|count| {
            let mut bench = Bench {
                device,
                random: Random(seed),
                tokens: *count,
            };
            let error = (case.run)(&mut bench).err()?;
            Some(format!("**wrong** with {count} tokens, seed {seed}: {error}"))
        });
        Verdict {
            name: case.name.to_owned(),
            kernels: case.kernels.join(", "),
            wrong,
        }
    };
    cases().map(run).collect()
}

/// A model file in a temporary folder.
pub(crate) struct Written {
    pub(crate) gguf: Gguf,
    _folder: tempfile::TempDir,
}

impl Written {
    pub(crate) fn of(dims: &Dims) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("model.gguf");
        ds4_synth::write(&path, dims, &mut |_, _| {})?;
        Ok(Self {
            gguf: open(&path)?,
            _folder: folder,
        })
    }

    /// The model on the device: decoding by graphs, and by launches one by one.
    pub(crate) fn both_ways(&self, device: &Arc<Device>, span: LayerSpan) -> Result<[CudaSlice; 2]> {
        let (canonical, quiet) = (Numerics::Canonical, &mut |_, _| {});
        let mut load = |decode| CudaSlice::load(&self.gguf, span, canonical, device.clone(), decode, quiet);
        Ok([load(Decode::Graphs)?, load(Decode::Launches)?])
    }
}

fn open(path: &Path) -> Result<Gguf> {
    Gguf::open(path).with_context(|| path.display().to_string())
}

/// Streams, logits, KV and the next tokens of a small model on the device beside the CPU, and a session that changes sides in the middle.
///
/// # Errors
/// When the model cannot be written or loaded.
pub fn whole_model(device: &Arc<Device>, tokens: usize) -> Result<Vec<Verdict>> {
    let micro = Written::of(&Dims::preset(Preset::Micro))?;
    let full = LayerSpan::full(Dims::preset(Preset::Micro).n_layer);
    let cpu = Graph::load(
        &micro.gguf,
        full,
        Numerics::Canonical,
        Cpu::new(None, None)?,
        &mut |_, _| {},
    )?;
    let [cuda, plain] = micro.both_ways(device, full)?;
    #[allow(clippy::cast_possible_truncation)] // ids of a small vocabulary
    let ids: Vec<u32> = (0..tokens).map(|i| 3 + (i * 37 % 250) as u32).collect();
    let expected = Answer::of(&cpu, &cpu, &ids, full)?;
    let ways: [(&str, &dyn ModelSlice, &dyn ModelSlice); 4] = [
        ("prefill and decode on the device", &cuda, &cuda),
        ("the same with launches one by one", &plain, &plain),
        ("CPU stage, device decodes", &cpu, &cuda),
        ("device stage, CPU decodes", &cuda, &cpu),
    ];
    let verdict = |(name, stage, output): (&str, &dyn ModelSlice, &dyn ModelSlice)| {
        let found = Answer::of(stage, output, &ids, full)?;
        Ok(Verdict {
            name: format!("{name}, {tokens} tokens"),
            kernels: "the whole model".into(),
            wrong: expected.differs(&found),
        })
    };
    ways.into_iter().map(verdict).collect()
}

/// What a session came to.
struct Answer {
    kv: Kv,
    logits: Vec<f32>,
}

/// Tokens that are decoded after the prompt.
const DECODED: usize = 3;

impl Answer {
    /// Layer 0 by `stage`, the others by `output`, which then decodes with the KV of all.
    fn of(stage: &dyn ModelSlice, output: &dyn ModelSlice, ids: &[u32], full: LayerSpan) -> Result<Self> {
        let layout = &output.info().layout;
        let early = LayerSpan {
            first: 0,
            last: 0,
            head: false,
        };
        let late = LayerSpan { first: 1, ..full };
        let (mut first, mut second) = (Kv::new(layout, early), Kv::new(layout, late));
        let mut last = None;
        for chunk in ids.chunks(ids.len().div_ceil(2)) {
            let mut hidden: Hidden = stage.embed(chunk)?;
            stage.forward(chunk, &mut hidden, &mut first)?;
            output.forward(chunk, &mut hidden, &mut second)?;
            last = Some(output.logits(&hidden, chunk.len() - 1)?);
        }
        let mut logits = last.context("at least one token")?;
        let mut session = CompleteKv::assemble(layout, vec![first, second])?;
        for _ in 0..DECODED {
            let next = best(&logits[logits.len() - output.info().config.n_vocab..]);
            let mut hidden = output.embed(&[next])?;
            output.forward(&[next], &mut hidden, session.kv_mut())?;
            logits.extend(output.logits(&hidden, 0)?);
        }
        Ok(Self {
            kv: session.kv().clone(),
            logits,
        })
    }

    /// In which way another answer is another one.
    fn differs(&self, other: &Self) -> Option<String> {
        let pairs = || self.logits.iter().zip(&other.logits);
        let differ = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if differ > 0 || self.logits.len() != other.logits.len() {
            let most = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            return Some(format!(
                "**wrong**: {differ} of {} logits, by up to {most:e}",
                self.logits.len()
            ));
        }
        (self.kv != other.kv).then(|| "**wrong**: KV rows".into())
    }
}

#[allow(clippy::cast_possible_truncation)] // ids of a small vocabulary
fn best(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}
