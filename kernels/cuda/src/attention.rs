//! Attention over compressed rows and the window.

use ds4_kernels::codec::kv_row_bytes;

use crate::error::{check, size};
use crate::launch::{In, Shape};
use crate::{CudaError, Device, Slice};

/// `TILE` of `cu/attention.cu`: rows decoded at a time.
const TILE: usize = 8;
/// `DIM_PARTS` of `cu/attention.cu` times the lanes of a warp: the widest head.
const WIDEST: usize = 16 * 32;
/// Heads that share a block's decoded rows, at most.
const HEADS: usize = 8;

/// The compressed rows that tokens see.
#[derive(Clone, Copy, Debug)]
pub enum Far<'a> {
    /// The first `seen[token]` of them.
    First {
        /// `[tokens]`.
        seen: Slice<'a, u32>,
        /// The most that a token sees.
        most: usize,
    },
    /// Those that [`crate::indexer::pick`] chose.
    Picked {
        /// `[tokens][k]`.
        picks: Slice<'a, u32>,
        /// `[tokens]`.
        counts: Slice<'a, u32>,
    },
}

/// What the queries of a layer attend to.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Ring of encoded window rows: that of position `p` lies in slot `p % slots`.
    pub window: Slice<'a, u8>,
    /// Window rows that a token sees, itself included.
    pub reach: usize,
    /// Encoded compressed rows.
    pub compressed: Slice<'a, u8>,
    /// Which of them.
    pub far: Far<'a>,
    /// Values of a row, and those that are rotary.
    pub dim: usize,
    /// Rotary values.
    pub rotary: usize,
    /// Logit without a value, per head.
    pub sinks: Slice<'a, f32>,
}

/// `out`, `[tokens][heads][dim]`, for `queries` of the same shape at `positions`. Compressed rows ascending, then window rows ascending.
///
/// # Errors
/// When the lengths do not fit, a token sees more rows than the weights of one head have room for, or the launch fails.
pub fn attend(
    device: &Device,
    queries: Slice<'_, f32>,
    positions: Slice<'_, u32>,
    keys: &Keys<'_>,
    out: Slice<'_, f32>,
) -> Result<(), CudaError> {
    const NAME: &str = "attention";
    let Keys {
        window,
        reach,
        compressed,
        far,
        dim,
        rotary,
        sinks,
    } = *keys;
    let (tokens, heads, bytes) = (positions.len(), sinks.len(), kv_row_bytes(dim, rotary));
    let queries = queries.exactly(NAME, "queries", tokens * heads * dim)?;
    let out = out.exactly(NAME, "out", queries.len())?;
    let slots = window.len() / bytes;
    check(NAME, "bytes of the window", slots * bytes, window.len())?;
    if dim > WIDEST {
        return Err(CudaError::Shape {
            operation: NAME,
            field: "values of a head",
            expected: WIDEST,
            found: dim,
        });
    }
    let (picks, counts, seen, k, most) = match far {
        Far::First { seen, most } => (
            In::NONE,
            In::NONE,
            seen.exactly(NAME, "seen", tokens)?.into(),
            0,
            most,
        ),
        Far::Picked { picks, counts } => {
            let k = picks.len() / tokens.max(1);
            check(NAME, "picks", tokens * k, picks.len())?;
            (
                picks.into(),
                counts.exactly(NAME, "counts", tokens)?.into(),
                In::NONE,
                k,
                k,
            )
        }
    };
    let room = most + reach;
    let bytes_of = |heads: usize| (TILE * dim + heads * room) * 4;
    let limit = device.facts().shared as usize;
    // No warps without a head: half as many would not do.
    let fits = |together: &usize| bytes_of(*together) <= limit && together / 2 < heads;
    let together = [HEADS, 4, 2, 1].into_iter().find(fits).ok_or(CudaError::Shape {
        operation: NAME,
        field: "rows that a token sees",
        expected: limit / 4 - TILE * dim,
        found: room,
    })?;
    let threads = size(NAME, "threads", together * 32)?;
    let mut shape = Shape::grid(heads.div_ceil(together), tokens, threads);
    shape.shared = size(NAME, "shared memory", bytes_of(together))?;
    #[allow(clippy::cast_precision_loss)] // a few hundred
    let scale = 1.0 / (dim as f32).sqrt();
    device.attend(
        shape,
        queries.into(),
        window.into(),
        compressed.into(),
        picks,
        counts,
        seen,
        positions.into(),
        sinks.into(),
        out.into(),
        size(NAME, "heads", heads)?,
        size(NAME, "values of a head", dim)?,
        size(NAME, "rotary values", rotary)?,
        size(NAME, "window", reach)?,
        size(NAME, "slots", slots)?,
        size(NAME, "picks of a token", k)?,
        size(NAME, "rows", room)?,
        scale,
    )
}
