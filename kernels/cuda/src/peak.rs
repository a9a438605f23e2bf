//! The device's rate of products of bytes, as a measure for the kernels.

use crate::error::size;
use crate::launch::Shape;
use crate::{CudaError, Device, Slice};

/// Threads of a block.
const THREADS: usize = 256;
/// `CHAINS` of `cu/peak.cu`, times the multiplications and additions of one tile: 16 by 8 by 32.
const OPERATIONS: usize = 8 * 2 * 16 * 8 * 32;

/// Multiplies `rounds` times in every warp that `out` has threads for; `operands` are six words of bytes. Returns the operations done.
///
/// # Errors
/// When `out` is no whole number of blocks of 256, there are no six operands, or the launch fails.
pub fn bytes(
    device: &Device,
    operands: Slice<'_, u32>,
    out: Slice<'_, i32>,
    rounds: usize,
) -> Result<usize, CudaError> {
    const NAME: &str = "peak of byte products";
    let blocks = out.len() / THREADS;
    let out = out.exactly(NAME, "out", blocks * THREADS)?;
    let operands = operands.exactly(NAME, "operands", 6)?;
    #[allow(clippy::cast_possible_truncation)] // 256
    let shape = Shape::blocks(blocks, THREADS as u32);
    device.peak_bytes(shape, operands.into(), out.into(), size(NAME, "rounds", rounds)?)?;
    Ok(blocks * THREADS / 32 * rounds * OPERATIONS)
}
