//! Loading a model with visible progress.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig, tensors};
use ds4_kernels_cpu::Cpu;
use ds4_kernels_cuda::{CudaError, Way};
use ds4_model::memory::{self, Need};
use ds4_model::{Graph, ModelSlice, Numerics};
use ds4_model_cuda::CudaSlice;
use ds4_model_metal::MetalSlice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{BackendArgument, ComputeArguments, DraftArguments};

/// A model file whose header was read.
pub(crate) struct Model {
    pub(crate) gguf: Gguf,
    pub(crate) config: ModelConfig,
}

/// Opens a file; the error names it.
pub(crate) fn open(path: &Path) -> Result<Model> {
    let named = || path.display().to_string();
    let gguf = Gguf::open(path).with_context(named)?;
    let config = ModelConfig::from_gguf(&gguf).with_context(named)?;
    Ok(Model { gguf, config })
}

/// The file of the draft head that `--mtp` asks for: the model's, or another one.
pub(crate) fn draft_head(model: &Path, draft: &DraftArguments) -> Result<Option<Gguf>> {
    let Some(file) = &draft.mtp else {
        return Ok(None);
    };
    let path = file.as_deref().unwrap_or(model);
    let head = Gguf::open(path).with_context(|| format!("--mtp {}", path.display()))?;
    Ok(Some(head))
}

/// Loads some layers, with the draft head in `draft`, unless the machine cannot hold them beside a session of `tokens` tokens; `report(percent)` while pages are read.
pub(crate) fn load(
    model: &Model,
    span: LayerSpan,
    tokens: u64,
    compute: &ComputeArguments,
    draft: Option<&Gguf>,
    report: &dyn Fn(u64),
) -> Result<Arc<dyn ModelSlice>> {
    ds4_fetch::ensure_covers(&model.gguf, &model.config, span)?;
    let named = || compute.model.display().to_string();
    let place = place(compute)?;
    if draft.is_some() && !matches!(place, Place::Cpu) {
        bail!("--mtp: expected --backend cpu, found a device: other back ends do not guess");
    }
    let draft_bytes = draft.map_or(Ok(0), |head| draft_bytes(head, &model.config))?;
    if matches!(place, Place::Cpu) {
        // A device is asked for its memory below.
        let tokens = tokens.min(model.config.context_length as u64);
        let mut need =
            Need::of(&model.gguf, &model.config, compute.numerics, span, tokens).with_context(named)?;
        need.weights += draft_bytes;
        need.check(memory::available())?;
    }
    let bar = bar("loading");
    let mut progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        report(done * 100 / total.max(1));
    };
    let (gguf, numerics) = (&model.gguf, compute.numerics);
    let slice: Arc<dyn ModelSlice> = match place {
        Place::Cuda(device) => {
            let decode = compute.cuda_graph.decode();
            let slice =
                CudaSlice::load(gguf, span, numerics, device, decode, &mut progress).with_context(named)?;
            tracing::info!(graphs = compute.cuda_graph.name(), "CUDA decode");
            match slice.way() {
                way @ Way::Refused(..) => tracing::warn!("weights went to the device {way}"),
                way => tracing::info!("weights went to the device {way}"),
            }
            Arc::new(slice)
        }
        Place::Metal(device) => {
            Arc::new(MetalSlice::load(gguf, span, numerics, device, &mut progress).with_context(named)?)
        }
        Place::Cpu => {
            let cpu = Cpu::new(compute.threads, None)?;
            let graph = Graph::load(gguf, span, numerics, cpu, &mut progress).with_context(named)?;
            match draft {
                Some(head) => Arc::new(graph.with_draft(head, &mut |_, _| {}).context(NO_HEAD)?),
                None => Arc::new(graph),
            }
        }
    };
    bar.finish_and_clear();
    if let Some(head) = draft {
        tracing::info!(file = %head.path().display(), bytes = draft_bytes, "draft head loaded: an answer that runs alone is decoded with guesses");
    }
    let info = slice.info();
    tracing::info!(model = %info.config.name, layers = %info.span, backend = %info.backend, bytes = info.weight_bytes, "model loaded");
    Ok(slice)
}

/// What an error of the draft head is told with.
const NO_HEAD: &str = "--mtp: no draft head of this model in that file";

/// Bytes of the draft head's weights.
fn draft_bytes(head: &Gguf, config: &ModelConfig) -> Result<u64> {
    let tensors = tensors::check_draft(head, config).context(NO_HEAD)?;
    Ok(tensors.iter().map(|tensor| tensor.bytes).sum())
}

/// Where to compute.
enum Place {
    Cpu,
    Cuda(Arc<ds4_kernels_cuda::Device>),
    Metal(Arc<ds4_kernels_metal::Device>),
}

/// The device that `--backend` asks for. What was found, or what is missing, is logged.
fn place(compute: &ComputeArguments) -> Result<Place> {
    let reference = compute.numerics != Numerics::Canonical;
    match compute.backend {
        BackendArgument::Cpu => Ok(Place::Cpu),
        BackendArgument::Cuda => cuda(compute.cuda_device).context("--backend cuda"),
        BackendArgument::Metal => metal().context("--backend metal"),
        BackendArgument::Auto if reference => Ok(Place::Cpu),
        BackendArgument::Auto if cfg!(target_os = "macos") => metal().or_else(|error| Ok(instead(&error))),
        BackendArgument::Auto => cuda(compute.cuda_device).or_else(|error| {
            if matches!(error, CudaError::NoDriver) {
                tracing::debug!(%error, "computing on the CPU");
                return Ok(Place::Cpu);
            }
            Ok(instead(&error))
        }),
    }
}

/// The CPU of a machine with a GPU, whose owner would not expect that.
fn instead(error: &dyn std::error::Error) -> Place {
    tracing::warn!(%error, "computing on the CPU; --backend cpu says so without asking for a device");
    Place::Cpu
}

fn cuda(ordinal: usize) -> Result<Place, CudaError> {
    let device = ds4_kernels_cuda::Device::open(ordinal)?;
    tracing::info!(device = %device.facts(), "CUDA device found");
    Ok(Place::Cuda(Arc::new(device)))
}

fn metal() -> Result<Place, ds4_kernels_metal::MetalError> {
    let device = ds4_kernels_metal::Device::open()?;
    tracing::info!(device = %device.facts(), "Metal device found");
    Ok(Place::Metal(Arc::new(device)))
}

/// A bar in bytes on a terminal, nothing elsewhere.
pub(crate) fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.with_prefix(what)
}
