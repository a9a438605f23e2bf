//! How a model is computed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ds4_model::Numerics;

/// Where a model is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum BackendArgument {
    /// A device when there is one, else the CPU; the log says which and why: Metal on a Mac, elsewhere CUDA.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device, or an error that says what is missing.
    Cuda,
    /// The GPU of a Mac, or an error that says what is missing.
    Metal,
}

impl BackendArgument {
    /// As it is written on a command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// How a CUDA device is told to decode a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum CudaGraphArgument {
    /// By one graph for each layer.
    On,
    /// By launches one by one.
    Off,
}

impl CudaGraphArgument {
    /// As the back end takes it.
    pub(crate) const fn decode(self) -> ds4_model_cuda::Decode {
        match self {
            Self::On => ds4_model_cuda::Decode::Graphs,
            Self::Off => ds4_model_cuda::Decode::Launches,
        }
    }

    /// As it is written on a command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// How a model is computed.
#[derive(Clone, Debug, Args)]
pub(crate) struct ComputeArguments {
    /// Model file (GGUF).
    #[arg(long, env = "DS4_MODEL", value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Arithmetic: canonical is what is served, reference proves the graph.
    #[arg(
        long,
        env = "DS4_NUMERICS",
        default_value = "canonical",
        value_name = "canonical|reference"
    )]
    pub(crate) numerics: Numerics,
    /// Where to compute; results have the same bits everywhere.
    #[arg(long, env = "DS4_BACKEND", value_enum, default_value = "auto")]
    pub(crate) backend: BackendArgument,
    /// CUDA device; CUDA_VISIBLE_DEVICES renumbers them.
    #[arg(long, env = "DS4_CUDA_DEVICE", default_value_t = 0, value_name = "N")]
    pub(crate) cuda_device: usize,
    /// Whether a CUDA device decodes by graphs; the bits are the same.
    #[arg(long, env = "DS4_CUDA_GRAPH", value_enum, default_value = "on")]
    pub(crate) cuda_graph: CudaGraphArgument,
    /// Compute threads [default: one per core].
    #[arg(long, env = "DS4_THREADS", value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Guesses while an answer is decoded.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DraftArguments {
    /// Decode with the draft head (multi-token prediction) of the model file, or of another one: an answer that runs alone has two tokens in a pass
    /// where the head guesses right. Answers stay the same. On the CPU only.
    #[arg(
        long,
        env = "DS4_MTP",
        num_args = 0..=1,
        require_equals = true,
        value_name = "FILE"
    )]
    #[allow(clippy::option_option)] // not asked for; asked for; asked for with a file
    pub(crate) mtp: Option<Option<PathBuf>>,
}
