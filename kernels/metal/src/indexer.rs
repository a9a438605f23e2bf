//! Choosing the compressed rows that a query attends to.

use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes};

use crate::error::{check, size};
use crate::{Device, MetalError, Shape, Slice};

/// `SCORE_THREADS` of `metal/indexer.metal`: rows of a block.
const ROWS: usize = 128;
/// `PICK_THREADS` of `metal/indexer.metal`.
const PICK_THREADS: u32 = 256;

/// The indexer's queries of some tokens, as [`crate::codec::index_queries`] makes them.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Heads per token.
    pub heads: usize,
    /// Values per head.
    pub dim: usize,
    /// `[tokens][heads][dim]`.
    pub codes: Slice<'a, i8>,
    /// `[tokens][heads][dim / 32]`.
    pub scales: Slice<'a, f32>,
    /// Weights of the heads, `[tokens][heads]`.
    pub weights: Slice<'a, f32>,
    /// Factor of every weight.
    pub factor: f32,
}

/// `scores[token][row]` for the first `seen[token]` encoded rows; `scores` is `[tokens][stride]` and `stride` at least the most that a token sees.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn scores(
    device: &Device,
    queries: &Queries<'_>,
    rows: Slice<'_, u8>,
    seen: Slice<'_, u32>,
    stride: usize,
    scores: Slice<'_, f32>,
) -> Result<(), MetalError> {
    const NAME: &str = "indexer scores";
    let Queries {
        heads,
        dim,
        codes,
        scales,
        weights,
        factor,
    } = *queries;
    let (tokens, blocks) = (seen.len(), dim / INDEXER_BLOCK);
    let codes = codes.exactly(NAME, "codes", tokens * heads * dim)?;
    let scales = scales.exactly(NAME, "scales", tokens * heads * blocks)?;
    let weights = weights.exactly(NAME, "weights", tokens * heads)?;
    let scores = scores.exactly(NAME, "scores", tokens * stride)?;
    if rows.len() < stride * indexer_row_bytes(dim) {
        return Err(MetalError::Shape {
            operation: NAME,
            field: "bytes of rows",
            expected: stride * indexer_row_bytes(dim),
            found: rows.len(),
        });
    }
    let mut shape = Shape::grid(stride.div_ceil(ROWS), tokens, 128);
    let shared = heads * dim + (heads * blocks + heads) * 4;
    shape.shared = size(NAME, "threadgroup memory", shared.next_multiple_of(16))?;
    device.index_scores(
        shape,
        codes.into(),
        scales.into(),
        weights.into(),
        rows.into(),
        seen.into(),
        scores.into(),
        size(NAME, "stride", stride)?,
        size(NAME, "heads", heads)?,
        size(NAME, "values of a head", dim)?,
        factor,
    )
}

/// The `k` best of each token's first `seen` scores, ties to the lowest index, ascending: `picks` is `[tokens][k]`, `counts` how many there are.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn pick(
    device: &Device,
    scores: Slice<'_, f32>,
    seen: Slice<'_, u32>,
    picks: Slice<'_, u32>,
    counts: Slice<'_, u32>,
) -> Result<(), MetalError> {
    const NAME: &str = "pick rows";
    let tokens = seen.len();
    let (stride, k) = (scores.len() / tokens.max(1), picks.len() / tokens.max(1));
    check(NAME, "scores", tokens * stride, scores.len())?;
    check(NAME, "picks", tokens * k, picks.len())?;
    let counts = counts.exactly(NAME, "counts", tokens)?;
    let shape = Shape::blocks(tokens, PICK_THREADS);
    let (stride, k) = (size(NAME, "stride", stride)?, size(NAME, "picks of a token", k)?);
    device.pick_rows(
        shape,
        scores.into(),
        seen.into(),
        picks.into(),
        counts.into(),
        stride,
        k,
    )
}
