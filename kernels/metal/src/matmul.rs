//! Products of weights and activations.

use ds4_kernels::Format;

use crate::activation::Quantized;
use crate::error::check;
use crate::matrix::Rows;
use crate::{Device, MetalError, Shape, Slice};

/// `MATMUL_SIMDS` of `metal/matmul.metal`, times the lanes of a SIMD group.
const THREADS: u32 = 4 * 32;
/// Rows of a block of the kernels for one token.
const VEC_ROWS: usize = 4 * 4;
/// Rows of a block of those for a few tokens, and the tokens.
const MUL_ROWS: usize = 4;
const MUL_TOKENS: usize = 8;
/// `TILE_ROWS` and `TILE_TOKENS` of `metal/tiles.metal`; its SIMD groups are as many threads.
pub(crate) const TILE_ROWS: usize = 64;
const TILE_TOKENS: usize = 32;
/// Tokens of a block of the kernels for floats.
const FLOAT_TOKENS: usize = 4;

/// How a product is computed. Any way gives the same bits.
#[derive(Clone, Copy)]
enum Way {
    /// One token.
    Vector,
    /// A few, which share what is read; many where there are no matrices.
    Plain,
    /// Many, by `simdgroup_matrix`.
    Tiles,
}

impl Way {
    const fn of(device: &Device, tokens: usize) -> Self {
        match tokens {
            1 => Self::Vector,
            _ if tokens > MUL_TOKENS && device.matrices() => Self::Tiles,
            _ => Self::Plain,
        }
    }

    const fn shape(self, rows: usize, tokens: usize) -> Shape {
        match self {
            Self::Vector => Shape::blocks(rows.div_ceil(VEC_ROWS), THREADS),
            Self::Plain => Shape::grid(rows.div_ceil(MUL_ROWS), tokens.div_ceil(MUL_TOKENS), THREADS),
            Self::Tiles => Shape::grid(rows.div_ceil(TILE_ROWS), tokens.div_ceil(TILE_TOKENS), THREADS),
        }
    }
}

/// `y[token][row] = weights[row] . x[token]`, quantised weights with activations in their blocks.
///
/// # Errors
/// When shapes or formats do not fit, or the launch fails.
pub fn quantized(
    device: &Device,
    weights: Rows<'_>,
    x: Quantized<'_>,
    y: Slice<'_, f32>,
) -> Result<(), MetalError> {
    const NAME: &str = "matmul";
    check(NAME, "columns of x", weights.cols, x.cols)?;
    check(NAME, "values per scale of x", weights.format.block_len(), x.block)?;
    let tokens = x.codes.len() / x.cols;
    let y = y.exactly(NAME, "y", tokens * weights.rows)?;
    let way = Way::of(device, tokens);
    let launch = match (weights.format, way) {
        (Format::Q8_0, Way::Vector) => Device::matvec_q8_0,
        (Format::Q2K, Way::Vector) => Device::matvec_q2_k,
        (Format::Q4K, Way::Vector) => Device::matvec_q4_k,
        (Format::Iq2Xxs, Way::Vector) => Device::matvec_iq2_xxs,
        (Format::Mxfp4, Way::Vector) => Device::matvec_mxfp4,
        (Format::Q8_0, Way::Plain) => Device::matmul_q8_0,
        (Format::Q2K, Way::Plain) => Device::matmul_q2_k,
        (Format::Q4K, Way::Plain) => Device::matmul_q4_k,
        (Format::Iq2Xxs, Way::Plain) => Device::matmul_iq2_xxs,
        (Format::Mxfp4, Way::Plain) => Device::matmul_mxfp4,
        (Format::Q8_0, Way::Tiles) => Device::tiles_q8_0,
        (Format::Q2K, Way::Tiles) => Device::tiles_q2_k,
        (Format::Q4K, Way::Tiles) => Device::tiles_q4_k,
        (Format::Iq2Xxs, Way::Tiles) => Device::tiles_iq2_xxs,
        (Format::Mxfp4, Way::Tiles) => Device::tiles_mxfp4,
        (format, _) => {
            return Err(MetalError::Format {
                operation: NAME,
                format,
            });
        }
    };
    let shape = way.shape(weights.rows, tokens);
    let (rows, cols, tokens) = sizes(weights, tokens);
    launch(
        device,
        shape,
        weights.bytes.into(),
        x.codes.into(),
        x.scales.into(),
        y.into(),
        rows,
        cols,
        tokens,
    )
}

/// The same for `F32` and `F16` weights with activations as they are.
///
/// # Errors
/// As [`quantized`].
pub fn floats(
    device: &Device,
    weights: Rows<'_>,
    x: Slice<'_, f32>,
    y: Slice<'_, f32>,
) -> Result<(), MetalError> {
    const NAME: &str = "matmul of floats";
    let tokens = x.len() / weights.cols;
    let x = x.exactly(NAME, "x", tokens * weights.cols)?;
    let y = y.exactly(NAME, "y", tokens * weights.rows)?;
    let of_block = if tokens == 1 { 1 } else { FLOAT_TOKENS };
    let shape = Shape::grid(
        weights.rows.div_ceil(MUL_ROWS),
        tokens.div_ceil(of_block),
        THREADS,
    );
    let launch = match (weights.format, tokens) {
        (Format::F32, 1) => Device::matvec_f32,
        (Format::F16, 1) => Device::matvec_f16,
        (Format::F32, _) => Device::matmul_f32,
        (Format::F16, _) => Device::matmul_f16,
        (format, _) => {
            return Err(MetalError::Format {
                operation: NAME,
                format,
            });
        }
    };
    let (rows, cols, tokens) = sizes(weights, tokens);
    launch(
        device,
        shape,
        weights.bytes.into(),
        x.into(),
        y.into(),
        rows,
        cols,
        tokens,
    )
}

#[allow(clippy::cast_possible_truncation)] // the config bounds every dimension below 2^24, and chunks are shorter
const fn sizes(weights: Rows<'_>, tokens: usize) -> (u32, u32, u32) {
    (weights.rows as u32, weights.cols as u32, tokens as u32)
}
