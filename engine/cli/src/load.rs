//! Loading a model with visible progress.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_kernels_cpu::Cpu;
use ds4_kernels_cuda::{CudaError, Device};
use ds4_model::memory::{self, Need};
use ds4_model::{Graph, ModelSlice, Numerics};
use ds4_model_cuda::CudaSlice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{BackendArgument, ComputeArguments};

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

/// Loads some layers, unless the machine cannot hold them beside a session of `tokens` tokens; `report(percent)` while pages are read.
pub(crate) fn load(
    model: &Model,
    span: LayerSpan,
    tokens: u64,
    compute: &ComputeArguments,
    report: &dyn Fn(u64),
) -> Result<Arc<dyn ModelSlice>> {
    ds4_fetch::ensure_covers(&model.gguf, &model.config, span)?;
    let named = || compute.model.display().to_string();
    let device = device(compute)?;
    if device.is_none() {
        // A device has memory of its own, which it is asked for below.
        let tokens = tokens.min(model.config.context_length as u64);
        Need::of(&model.gguf, &model.config, compute.numerics, span, tokens)
            .with_context(named)?
            .check(memory::available())?;
    }
    let bar = bar("loading");
    let mut progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        report(done * 100 / total.max(1));
    };
    let (gguf, numerics) = (&model.gguf, compute.numerics);
    let slice: Arc<dyn ModelSlice> = match device {
        Some(device) => {
            Arc::new(CudaSlice::load(gguf, span, numerics, device, &mut progress).with_context(named)?)
        }
        None => {
            let cpu = Cpu::new(compute.threads, None)?;
            Arc::new(Graph::load(gguf, span, numerics, cpu, &mut progress).with_context(named)?)
        }
    };
    bar.finish_and_clear();
    let info = slice.info();
    tracing::info!(model = %info.config.name, layers = %info.span, backend = %info.backend, bytes = info.weight_bytes, "model loaded");
    Ok(slice)
}

/// The CUDA device to compute on; none for the CPU. What was found, or what is missing, is logged.
fn device(compute: &ComputeArguments) -> Result<Option<Arc<Device>>> {
    let reference = compute.numerics != Numerics::Canonical;
    if compute.backend == BackendArgument::Cpu || (compute.backend == BackendArgument::Auto && reference) {
        return Ok(None);
    }
    match (Device::open(compute.cuda_device), compute.backend) {
        (Ok(device), _) => {
            tracing::info!(device = %device.facts(), "CUDA device found");
            Ok(Some(Arc::new(device)))
        }
        (Err(error), BackendArgument::Cuda) => Err(error).context("--backend cuda"),
        (Err(error @ CudaError::NoDriver), _) => {
            tracing::debug!(%error, "computing on the CPU");
            Ok(None)
        }
        // A machine with a GPU whose owner would not expect the CPU.
        (Err(error), _) => {
            tracing::warn!(%error, "computing on the CPU; --backend cpu says so without asking the driver");
            Ok(None)
        }
    }
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
