//! The chosen experts over their tokens.

use ds4_kernels::Format;

use crate::activation::Quantized;
pub use crate::chosen::{combine, swiglu};
use crate::chosen::{down_fits, gate_up_fits};
use crate::error::size;
use crate::matmul::TILE_ROWS;
use crate::matrix::{Rows, Weights};
use crate::router::{Choices, Groups};
use crate::{Device, MetalError, Shape, Slice};

/// `EXPERT_SIMDS` of `metal/experts.metal`, times the lanes of a SIMD group.
const THREADS: u32 = 4 * 32;
/// Rows of a block where every choice is a group of its own, and where those of an expert are together by plain kernels.
const ONE_ROWS: usize = 4 * 4;
const MANY_ROWS: usize = 4;

/// Which choices are computed together. Any way gives the same bits.
#[derive(Clone, Copy, Debug)]
pub enum Together<'a> {
    /// None: where there are few.
    One,
    /// Those of an expert, eight at a time.
    Many(Groups<'a>),
    /// Those of an expert, by `simdgroup_matrix`: where each has several.
    Tiles(Groups<'a>),
}

impl<'a> Together<'a> {
    /// Choices of an expert, on average, from which matrices are used: the narrowest is half full then.
    const FULL: usize = 4;

    /// The way for so many choices in groups.
    #[must_use]
    pub const fn of(device: &Device, groups: Groups<'a>, choices: usize) -> Self {
        if device.matrices() && choices >= Self::FULL * (groups.starts.len() - 1) {
            Self::Tiles(groups)
        } else {
            Self::Many(groups)
        }
    }

    const fn groups(self) -> Option<Groups<'a>> {
        match self {
            Self::One => None,
            Self::Many(groups) | Self::Tiles(groups) => Some(groups),
        }
    }

    const fn rows(self) -> usize {
        match self {
            Self::One => ONE_ROWS,
            Self::Many(_) => MANY_ROWS,
            Self::Tiles(_) => TILE_ROWS,
        }
    }
}

/// What a launch of either kernel takes beside its operands.
struct Launch<'a> {
    shape: Shape,
    order: Slice<'a, u32>,
    starts: Slice<'a, u32>,
    grouped: u32,
}

impl<'a> Launch<'a> {
    fn new(rows: usize, choices: Choices<'a>, together: Together<'a>) -> Self {
        let groups = together.groups();
        let count = groups.map_or(choices.experts.len(), |groups| groups.starts.len() - 1);
        Self {
            shape: Shape::grid(rows.div_ceil(together.rows()), count, THREADS),
            // Where choices are alone the kernel reads neither list; a buffer must be there all the same.
            order: groups.map_or(choices.experts, |groups| groups.order),
            starts: groups.map_or(choices.experts, |groups| groups.starts),
            grouped: groups.is_some().into(),
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
) -> Result<(), MetalError> {
    const NAME: &str = "gate and up";
    let out = gate_up_fits(NAME, gate, up, n_ff, x, choices, out)?;
    let launch = Launch::new(n_ff, choices, together);
    let kernel = match (gate.format(), together) {
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
        (Format::Q8_0, Together::Tiles(_)) => Device::gate_up_q8_0_tiles,
        (Format::Q2K, Together::Tiles(_)) => Device::gate_up_q2_k_tiles,
        (Format::Q4K, Together::Tiles(_)) => Device::gate_up_q4_k_tiles,
        (Format::Iq2Xxs, Together::Tiles(_)) => Device::gate_up_iq2_xxs_tiles,
        (Format::Mxfp4, Together::Tiles(_)) => Device::gate_up_mxfp4_tiles,
        (format, _) => {
            return Err(MetalError::Format {
                operation: NAME,
                format,
            });
        }
    };
    let (gate, up) = (gate.all(), up.all());
    kernel(
        device,
        launch.shape,
        gate.bytes.into(),
        up.bytes.into(),
        x.codes.into(),
        x.scales.into(),
        choices.experts.into(),
        launch.order.into(),
        launch.starts.into(),
        choices.weights.into(),
        out.into(),
        size(NAME, "rows", n_ff)?,
        size(NAME, "columns", gate.cols)?,
        size(NAME, "experts of a token", choices.used)?,
        launch.grouped,
        clamp,
    )
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
) -> Result<(), MetalError> {
    const NAME: &str = "down";
    let out = down_fits(NAME, weights, n_embd, x, choices, out)?;
    let launch = Launch::new(n_embd, choices, together);
    let kernel = match (weights.format, together) {
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
        (Format::Q8_0, Together::Tiles(_)) => Device::down_q8_0_tiles,
        (Format::Q2K, Together::Tiles(_)) => Device::down_q2_k_tiles,
        (Format::Q4K, Together::Tiles(_)) => Device::down_q4_k_tiles,
        (Format::Iq2Xxs, Together::Tiles(_)) => Device::down_iq2_xxs_tiles,
        (Format::Mxfp4, Together::Tiles(_)) => Device::down_mxfp4_tiles,
        (format, _) => {
            return Err(MetalError::Format {
                operation: NAME,
                format,
            });
        }
    };
    kernel(
        device,
        launch.shape,
        weights.bytes.into(),
        x.codes.into(),
        x.scales.into(),
        choices.experts.into(),
        launch.order.into(),
        launch.starts.into(),
        out.into(),
        size(NAME, "rows", n_embd)?,
        size(NAME, "columns", weights.cols)?,
        size(NAME, "experts of a token", choices.used)?,
        launch.grouped,
        0.0,
    )
}
