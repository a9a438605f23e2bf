//! The indexer: which compressed rows a token attends to.

use std::ops::Range;

use crate::kernels::attention::Far;
use crate::kernels::codec::index_queries;
use crate::kernels::indexer::{Queries, pick, scores};
use crate::kernels::{DeviceError, Slice, norm};
use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes};
use ds4_model::KvKind;

use crate::input::Input;
use crate::load::{Attention, Indexer};
use crate::pass::Pass;

/// Scores that are held at once, in numbers: 64 MiB.
const SCORES: usize = 16 << 20;

/// The rows picked for every token.
pub(crate) struct Picks<'a> {
    rows: Slice<'a, u32>,
    counts: Slice<'a, u32>,
    k: usize,
}

impl<'a> Picks<'a> {
    /// Those of some tokens.
    pub(crate) fn of(&self, tokens: Range<usize>) -> Far<'a> {
        Far::Picked {
            picks: self.rows.range(tokens.start * self.k..tokens.end * self.k),
            counts: self.counts.range(tokens),
        }
    }
}

impl<'a> Pass<'a> {
    /// The compressed rows that the indexer keeps for every token; none where every token may see all that there are for it.
    pub(crate) fn select(
        &self,
        number: usize,
        index: usize,
        weights: &Attention,
        x: &Input<'a>,
        low: &Input<'a>,
    ) -> Result<Option<Picks<'a>>, DeviceError> {
        let (ratio, k) = (u64::from(self.config.ratios[number]), self.config.indexer.top_k);
        let Some(indexer) = &weights.indexer else {
            return Ok(None);
        };
        if self.chunks.iter().all(|chunk| chunk.end() / ratio <= k as u64) {
            return Ok(None);
        }
        let queries = self.index_queries(number, indexer, x, low)?;
        let picks = Picks {
            rows: self.take(self.tokens() * k)?,
            counts: self.take(self.tokens())?,
            k,
        };
        for chunk in 0..self.chunks.len() {
            self.pick(number, index, chunk, &queries, &picks)?;
        }
        Ok(Some(picks))
    }

    fn index_queries(
        &self,
        number: usize,
        indexer: &Indexer,
        x: &Input<'a>,
        low: &Input<'a>,
    ) -> Result<Queries<'a>, DeviceError> {
        let (heads, dim) = (self.config.indexer.heads, self.config.indexer.dim);
        let values = low.times(&indexer.queries)?;
        norm::rotate(self.device, self.rotated(number, values, heads), false)?;
        let (codes, scales) = (self.take(values.len())?, self.take(values.len() / INDEXER_BLOCK)?);
        index_queries(self.device, values, dim, codes, scales)?;
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let factor = 1.0 / ((heads * dim) as f32).sqrt();
        Ok(Queries {
            heads,
            dim,
            codes,
            scales,
            weights: x.times(&indexer.heads)?,
            factor,
        })
    }

    /// The tokens of one chunk, as many at a time as there is room for their scores.
    fn pick(
        &self,
        number: usize,
        index: usize,
        chunk: usize,
        queries: &Queries<'a>,
        picks: &Picks<'a>,
    ) -> Result<(), DeviceError> {
        let ratio = self.config.ratios[number];
        let chunk = &self.chunks[chunk];
        let Some(rows) = chunk.session.layers[index]
            .iter()
            .find(|rows| rows.kind == KvKind::Indexer)
        else {
            unreachable!("layer {number} keeps indexer rows");
        };
        let Some(seen) = self.seen(ratio) else {
            unreachable!("layer {number} has ratio {ratio}")
        };
        let stride = usize::try_from(chunk.end() / u64::from(ratio))
            .unwrap_or(usize::MAX)
            .max(1);
        let (heads, dim) = (queries.heads, queries.dim);
        let bytes = rows.all();
        debug_assert!(bytes.len() >= stride * indexer_row_bytes(dim));
        let mut from = chunk.range.start;
        while from < chunk.range.end {
            let mark = self.arena.mark();
            let to = chunk.range.end.min(from + (SCORES / stride).max(1));
            let of = |per: usize| from * per..to * per;
            let part = Queries {
                codes: queries.codes.range(of(heads * dim)),
                scales: queries.scales.range(of(heads * dim / INDEXER_BLOCK)),
                weights: queries.weights.range(of(heads)),
                ..*queries
            };
            let (seen, out) = (seen.range(from..to), self.take((to - from) * stride)?);
            scores(self.device, &part, bytes, seen, stride, out)?;
            pick(
                self.device,
                out,
                seen,
                picks.rows.range(of(picks.k)),
                picks.counts.range(from..to),
            )?;
            self.arena.release(mark);
            from = to;
        }
        Ok(())
    }
}
