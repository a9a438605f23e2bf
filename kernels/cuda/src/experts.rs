//! The chosen experts over their tokens.

use ds4_kernels::Format;

use crate::activation::Quantized;
pub use crate::chosen::{combine, swiglu};
use crate::chosen::{down_fits, gate_up_fits};
use crate::error::size;
use crate::launch::{In, Shape};
use crate::matrix::{Rows, Weights};
use crate::router::{Choices, Groups};
use crate::{CudaError, Device, Slice};

/// `EXPERT_WARPS` of `cu/experts.cu`, times the lanes of a warp.
const THREADS: u32 = 4 * 32;
/// Rows of a block where every choice is a group of its own, where those of an expert are together, and on tensor cores.
const ONE_ROWS: usize = 4 * 4;
const MANY_ROWS: usize = 4;
const TILE_ROWS: usize = 4 * 16;

/// Which choices are computed together. Any way gives the same bits.
#[derive(Clone, Copy, Debug)]
pub enum Together<'a> {
    /// None: where there are few.
    One,
    /// Those of an expert, eight at a time.
    Many(Groups<'a>),
    /// Those of an expert, on tensor cores: where each has several.
    Tiles(Groups<'a>),
}

impl<'a> Together<'a> {
    /// Choices of an expert, on average, from which tensor cores are used: a tile of theirs is half full then.
    const FULL: usize = 4;

    /// The way for so many choices in groups.
    #[must_use]
    pub const fn of(groups: Groups<'a>, choices: usize) -> Self {
        if choices >= Self::FULL * (groups.starts.len() - 1) {
            Self::Tiles(groups)
        } else {
            Self::Many(groups)
        }
    }

    const fn shape(self, rows: usize, choices: usize) -> Shape {
        match self {
            Self::One => Shape::grid(rows.div_ceil(ONE_ROWS), choices, THREADS),
            Self::Many(groups) => Shape::grid(rows.div_ceil(MANY_ROWS), groups.starts.len() - 1, THREADS),
            Self::Tiles(groups) => Shape::grid(rows.div_ceil(TILE_ROWS), groups.starts.len() - 1, THREADS),
        }
    }

    /// Where choices are in groups, their order and where each begins.
    fn order(self) -> (In<u32>, In<u32>) {
        match self {
            Self::One => (In::NONE, In::NONE),
            Self::Many(groups) | Self::Tiles(groups) => (groups.order.into(), groups.starts.into()),
        }
    }
}

/// `out[choice] = silu(min(gate, clamp)) * clamp(up) * weight` for the choice's expert and token: `[choices][n_ff]`. Matrices of all experts are stacked.
///
/// # Errors
/// When the shapes do not fit or the launch fails.
#[allow(clippy::too_many_arguments)] // the operands of one fused step
pub fn gate_up(
    device: &Device,
    gate: &Weights,
    up: &Weights,
    n_ff: usize,
    x: Quantized<'_>,
    choices: Choices<'_>,
    together: Together<'_>,
    clamp: f32,
    out: Slice<'_, f32>,
) -> Result<(), CudaError> {
    const NAME: &str = "gate and up";
    let out = gate_up_fits(NAME, gate, up, n_ff, x, choices, out)?;
    let (shape, (order, starts)) = (together.shape(n_ff, choices.experts.len()), together.order());
    let format = gate.format();
    let (gate, up) = (gate.all(), up.all());
    let (rows, cols) = (size(NAME, "rows", n_ff)?, size(NAME, "columns", gate.cols)?);
    let used = size(NAME, "experts of a token", choices.used)?;
    if let Together::Tiles(_) = together {
        let kernel = match format {
            Format::Q8_0 => Device::gate_up_q8_0_tiles,
            Format::Q2K => Device::gate_up_q2_k_tiles,
            Format::Q4K => Device::gate_up_q4_k_tiles,
            Format::Iq2Xxs => Device::gate_up_iq2_xxs_tiles,
            Format::Mxfp4 => Device::gate_up_mxfp4_tiles,
            format => return Err(refused(NAME, format)),
        };
        return kernel(
            device,
            shape,
            gate.heads.into(),
            gate.body.into(),
            up.heads.into(),
            up.body.into(),
            x.codes.into(),
            x.scales.into(),
            order,
            starts,
            choices.weights.into(),
            out.into(),
            rows,
            cols,
            used,
            clamp,
        );
    }
    let kernel = match (format, together) {
        (Format::Q8_0, Together::One) => Device::gate_up_q8_0_one,
        (Format::Q2K, Together::One) => Device::gate_up_q2_k_one,
        (Format::Q4K, Together::One) => Device::gate_up_q4_k_one,
        (Format::Iq2Xxs, Together::One) => Device::gate_up_iq2_xxs_one,
        (Format::Mxfp4, Together::One) => Device::gate_up_mxfp4_one,
        (Format::Q8_0, Together::Many(_)) => Device::gate_up_q8_0_many,
        (Format::Q2K, Together::Many(_)) => Device::gate_up_q2_k_many,
        (Format::Q4K, Together::Many(_)) => Device::gate_up_q4_k_many,
        (Format::Iq2Xxs, Together::Many(_)) => Device::gate_up_iq2_xxs_many,
        (Format::Mxfp4, Together::Many(_)) => Device::gate_up_mxfp4_many,
        (format, _) => return Err(refused(NAME, format)),
    };
    kernel(
        device,
        shape,
        gate.heads.into(),
        gate.body.into(),
        up.heads.into(),
        up.body.into(),
        x.codes.into(),
        x.scales.into(),
        choices.experts.into(),
        order,
        starts,
        choices.weights.into(),
        out.into(),
        rows,
        cols,
        used,
        clamp,
    )
}

/// The error of a format without kernels.
const fn refused(operation: &'static str, format: Format) -> CudaError {
    CudaError::Format { operation, format }
}

/// The last product of the chosen experts: `x` and `out` have a row per choice.
///
/// # Errors
/// When the shapes do not fit or the launch fails.
pub fn down(
    device: &Device,
    weights: Rows<'_>,
    n_embd: usize,
    x: Quantized<'_>,
    choices: Choices<'_>,
    together: Together<'_>,
    out: Slice<'_, f32>,
) -> Result<(), CudaError> {
    const NAME: &str = "down";
    let out = down_fits(NAME, weights, n_embd, x, choices, out)?;
    let (shape, (order, starts)) = (together.shape(n_embd, choices.experts.len()), together.order());
    let format = weights.format;
    let (rows, cols) = (size(NAME, "rows", n_embd)?, size(NAME, "columns", weights.cols)?);
    if let Together::Tiles(_) = together {
        let kernel = match format {
            Format::Q8_0 => Device::down_q8_0_tiles,
            Format::Q2K => Device::down_q2_k_tiles,
            Format::Q4K => Device::down_q4_k_tiles,
            Format::Iq2Xxs => Device::down_iq2_xxs_tiles,
            Format::Mxfp4 => Device::down_mxfp4_tiles,
            format => return Err(refused(NAME, format)),
        };
        return kernel(
            device,
            shape,
            weights.heads.into(),
            weights.body.into(),
            x.codes.into(),
            x.scales.into(),
            order,
            starts,
            out.into(),
            rows,
            cols,
        );
    }
    let kernel = match (format, together) {
        (Format::Q8_0, Together::One) => Device::down_q8_0_one,
        (Format::Q2K, Together::One) => Device::down_q2_k_one,
        (Format::Q4K, Together::One) => Device::down_q4_k_one,
        (Format::Iq2Xxs, Together::One) => Device::down_iq2_xxs_one,
        (Format::Mxfp4, Together::One) => Device::down_mxfp4_one,
        (Format::Q8_0, Together::Many(_)) => Device::down_q8_0_many,
        (Format::Q2K, Together::Many(_)) => Device::down_q2_k_many,
        (Format::Q4K, Together::Many(_)) => Device::down_q4_k_many,
        (Format::Iq2Xxs, Together::Many(_)) => Device::down_iq2_xxs_many,
        (Format::Mxfp4, Together::Many(_)) => Device::down_mxfp4_many,
        (format, _) => return Err(refused(NAME, format)),
    };
    kernel(
        device,
        shape,
        weights.heads.into(),
        weights.body.into(),
        x.codes.into(),
        x.scales.into(),
        choices.experts.into(),
        order,
        starts,
        out.into(),
        rows,
        cols,
    )
}
