//! Encoding KV rows, and rounding the indexer's queries as rows are.

use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes, kv_row_bytes};

use crate::error::{check, size};
use crate::{Device, MetalError, Shape, Slice};

/// Threads of a block, a SIMD group per row: `INDEX_SIMDS` of `metal/codec.metal` for indexer rows.
const THREADS: u32 = 128;
/// Widest indexer row: four blocks in `metal/indexer.metal`.
const INDEXER_MOST: usize = 128;

/// Where encoded rows go: row `i` to slot `(first + i) % slots`.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// `[slots][bytes of a row]`.
    pub bytes: Slice<'a, u8>,
    /// Number of the first row that is written.
    pub first: u64,
}

/// Encodes KV rows, `[rows][dim]`, the last `rotary` values of each as halves.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn encode_kv(
    device: &Device,
    x: Slice<'_, f32>,
    dim: usize,
    rotary: usize,
    to: Ring<'_>,
) -> Result<(), MetalError> {
    const NAME: &str = "encode KV rows";
    let (rows, bytes) = (x.len() / dim, kv_row_bytes(dim, rotary));
    check(NAME, "x", rows * dim, x.len())?;
    let slots = to.bytes.len() / bytes;
    check(NAME, "bytes of slots", slots * bytes, to.bytes.len())?;
    if rows > slots {
        return Err(MetalError::Shape {
            operation: NAME,
            field: "rows",
            expected: slots,
            found: rows,
        });
    }
    device.encode_kv(
        Shape::threads(rows * 32, THREADS),
        x.into(),
        to.bytes.into(),
        size(NAME, "rows", rows)?,
        size(NAME, "values of a row", dim)?,
        size(NAME, "rotary values", rotary)?,
        slot(to.first, slots),
        size(NAME, "slots", slots)?,
    )
}

/// Transforms and encodes indexer rows, `[rows][dim]`, from row `to.first` on; these rows never wrap.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn encode_indexer(
    device: &Device,
    x: Slice<'_, f32>,
    dim: usize,
    to: Ring<'_>,
) -> Result<(), MetalError> {
    const NAME: &str = "encode indexer rows";
    check_dim(NAME, dim)?;
    let (rows, bytes) = (x.len() / dim, indexer_row_bytes(dim));
    check(NAME, "x", rows * dim, x.len())?;
    let (first, room) = (
        usize::try_from(to.first).unwrap_or(usize::MAX),
        to.bytes.len() / bytes,
    );
    if first.saturating_add(rows) > room {
        return Err(MetalError::Shape {
            operation: NAME,
            field: "rows",
            expected: room,
            found: first + rows,
        });
    }
    let shape = Shape::threads(rows * 32, THREADS);
    let (rows, dim) = (size(NAME, "rows", rows)?, size(NAME, "values of a row", dim)?);
    device.encode_indexer(
        shape,
        x.into(),
        to.bytes.into(),
        rows,
        dim,
        size(NAME, "first row", first)?,
    )
}

/// Rounds rotated indexer queries, `[heads][dim]`: twice the value of every code, and a quarter of every scale, `[heads][dim / 32]`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn index_queries(
    device: &Device,
    x: Slice<'_, f32>,
    dim: usize,
    codes: Slice<'_, i8>,
    scales: Slice<'_, f32>,
) -> Result<(), MetalError> {
    const NAME: &str = "indexer queries";
    check_dim(NAME, dim)?;
    let heads = x.len() / dim;
    check(NAME, "x", heads * dim, x.len())?;
    let codes = codes.exactly(NAME, "codes", x.len())?;
    let scales = scales.exactly(NAME, "scales", x.len() / INDEXER_BLOCK)?;
    let shape = Shape::threads(heads * 32, THREADS);
    let (heads, dim) = (size(NAME, "heads", heads)?, size(NAME, "values of a head", dim)?);
    device.index_queries(shape, x.into(), codes.into(), scales.into(), heads, dim)
}

/// Rows are powers of two of whole blocks, and few enough.
fn check_dim(operation: &'static str, dim: usize) -> Result<(), MetalError> {
    let fitting = dim.next_power_of_two().clamp(INDEXER_BLOCK, INDEXER_MOST);
    check(operation, "values of a row", fitting, dim)
}

/// A row's number within the ring.
#[allow(clippy::cast_possible_truncation)] // below the number of slots
pub(crate) const fn slot(row: u64, slots: usize) -> u32 {
    (row % slots as u64) as u32
}
