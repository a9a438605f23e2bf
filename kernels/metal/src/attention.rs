//! Attention over compressed rows and the window.

use ds4_kernels::codec::kv_row_bytes;

use crate::error::{check, size};
use crate::{Device, MetalError, Shape, Slice};

/// `TILE` of `metal/attention.metal`: rows decoded at a time.
const TILE: usize = 8;
/// `DIM_PARTS` of `metal/attention.metal` times the lanes of a SIMD group: the widest head.
const WIDEST: usize = 16 * 32;
/// `ATTEND_SIMDS` of `metal/attention.metal`: heads that share a group's decoded rows.
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

impl Keys<'_> {
    /// Rows that a token sees, at most.
    fn room(&self, tokens: usize) -> usize {
        let far = match self.far {
            Far::First { most, .. } => most,
            Far::Picked { picks, .. } => picks.len() / tokens.max(1),
        };
        far + self.reach
    }

    /// Numbers of scratch that one token takes.
    #[must_use]
    pub fn scratch(&self, tokens: usize) -> usize {
        self.sinks.len() * self.room(tokens)
    }
}

/// `out`, `[tokens][heads][dim]`, for `queries` of the same shape at `positions`. Compressed rows ascending, then window rows ascending. `scratch` holds
/// [`Keys::scratch`] numbers for one token at least; tokens take turns where it does not hold all of theirs.
///
/// # Errors
/// When the lengths do not fit or a launch fails.
pub fn attend(
    device: &Device,
    queries: Slice<'_, f32>,
    positions: Slice<'_, u32>,
    keys: &Keys<'_>,
    scratch: Slice<'_, f32>,
    out: Slice<'_, f32>,
) -> Result<(), MetalError> {
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
    let at_most = |field, expected, found| {
        let wrong = MetalError::Shape {
            operation: NAME,
            field,
            expected,
            found,
        };
        if found > expected { Err(wrong) } else { Ok(()) }
    };
    at_most("values of a head", WIDEST, dim)?;
    at_most("scratch of a token", scratch.len(), keys.scratch(tokens))?;
    let (picks, counts, k) = match far {
        // A buffer must be there where no picks are read.
        Far::First { seen, .. } => (positions, seen.exactly(NAME, "seen", tokens)?, 0),
        Far::Picked { picks, counts } => {
            let k = picks.len() / tokens.max(1);
            check(NAME, "picks", tokens * k, picks.len())?;
            (picks, counts.exactly(NAME, "counts", tokens)?, k)
        }
    };
    let together = (scratch.len() / keys.scratch(tokens).max(1)).max(1);
    let mut from = 0;
    while from < tokens {
        let to = tokens.min(from + together);
        let of = |per: usize| from * per..to * per;
        let mut shape = Shape::grid(
            heads.div_ceil(HEADS),
            to - from,
            size(NAME, "threads", HEADS * 32)?,
        );
        shape.shared = size(NAME, "threadgroup memory", (TILE * dim * 4).next_multiple_of(16))?;
        #[allow(clippy::cast_precision_loss)] // a few hundred
        let scale = 1.0 / (dim as f32).sqrt();
        device.attend(
            shape,
            queries.range(of(heads * dim)).into(),
            window.into(),
            compressed.into(),
            if k == 0 {
                picks.into()
            } else {
                picks.range(of(k)).into()
            },
            counts.range(of(1)).into(),
            positions.range(of(1)).into(),
            sinks.into(),
            scratch.into(),
            out.range(of(heads * dim)).into(),
            size(NAME, "heads", heads)?,
            size(NAME, "values of a head", dim)?,
            size(NAME, "rotary values", rotary)?,
            size(NAME, "window", reach)?,
            size(NAME, "slots", slots)?,
            size(NAME, "picks of a token", k)?,
            (k > 0).into(),
            size(NAME, "rows", keys.room(tokens))?,
            scale,
        )?;
        from = to;
    }
    Ok(())
}
