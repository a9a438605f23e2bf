//! Attention over the window and the compressed rows.

use ds4_kernels::Form;
use ds4_kernels_metal::attention::{Far, Keys, attend};
use ds4_kernels_metal::codec::{Ring, encode_kv};
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::norm::{self, Rotated};
use ds4_kernels_metal::router::{Choices, Groups, group};
use ds4_kernels_metal::{MetalError, Slice};
use ds4_model::KvKind;

use crate::input::Input;
use crate::load::Attention;
use crate::pass::Pass;
use crate::select::Picks;
use crate::widened::Widened;

/// Choices that are computed one by one: more of them share the reading of a matrix.
pub(crate) const FEW: usize = 16;

/// Weights of attention that are held at once, in numbers: 64 MiB.
const SCRATCH: usize = 16 << 20;

impl<'a> Pass<'a> {
    /// The block's output `[tokens][n_embd]`; appends rows of all kinds to the sessions. `index` is the layer's place in them.
    pub(crate) fn attention(
        &self,
        number: usize,
        index: usize,
        weights: &Attention,
        x: Slice<'a, f32>,
    ) -> Result<Slice<'a, f32>, MetalError> {
        let (device, config) = (self.device, self.config);
        let (dim, heads) = (config.head_dim, config.n_head);
        let x = self.input(x, config.n_embd);
        let low = x.times(&weights.q_a)?;
        norm::rms(device, low, weights.q_a_norm.all(), config.rms_eps, low)?;
        let low = self.input(low, config.q_lora);
        let queries = low.times(&weights.q_b)?;
        norm::heads(device, self.rotated(number, queries, heads), config.rms_eps)?;
        let rows = x.times(&weights.kv)?;
        norm::rms(device, rows, weights.kv_norm.all(), config.rms_eps, rows)?;
        norm::rotate(device, self.rotated(number, rows, 1), false)?;
        self.compressed(number, index, weights, &x)?;
        let picks = self.select(number, index, weights, &x, &low)?;
        let out = self.take(queries.len())?;
        for chunk in 0..self.chunks.len() {
            self.attend(number, index, chunk, weights, queries, rows, picks.as_ref(), out)?;
        }
        norm::rotate(device, self.rotated(number, out, heads), true)?;
        debug_assert_eq!(out.len(), self.tokens() * heads * dim);
        self.output(weights, out)
    }

    /// Rows of a layer, `per` of them for each token.
    pub(crate) fn rotated(&self, number: usize, rows: Slice<'a, f32>, per: usize) -> Rotated<'a> {
        Rotated {
            rows,
            dim: rows.len() / (self.tokens() * per),
            rotations: self.rotations(self.config.ratios[number] != 0),
            rotary: self.config.n_rot,
            per,
        }
    }

    /// The tokens of one chunk: their rows enter the window, then they attend.
    #[allow(clippy::too_many_arguments)] // one chunk's view of the pass
    fn attend(
        &self,
        number: usize,
        index: usize,
        chunk: usize,
        weights: &Attention,
        queries: Slice<'a, f32>,
        rows: Slice<'a, f32>,
        picks: Option<&Picks<'a>>,
        out: Slice<'a, f32>,
    ) -> Result<(), MetalError> {
        let config = self.config;
        let (dim, rotary, reach) = (config.head_dim, config.n_rot, config.window);
        let chunk = &self.chunks[chunk];
        let (range, tokens) = (chunk.range.clone(), chunk.range.len());
        let mark = self.arena.mark();
        let kept = &chunk.session.layers[index];
        let own = &kept[0];
        debug_assert_eq!(own.kind, KvKind::Window);
        let live = chunk.start.saturating_sub(reach as u64 - 1)..chunk.start;
        let window = Widened::new(self, own.all(), own.row, live, reach + tokens, tokens)?;
        let ring = Ring {
            bytes: window.bytes,
            first: chunk.start,
        };
        encode_kv(
            self.device,
            rows.range(range.start * dim..range.end * dim),
            dim,
            rotary,
            ring,
        )?;
        let far = match (picks, self.seen(config.ratios[number])) {
            (Some(picks), _) => picks.of(range.clone()),
            (None, Some(seen)) => Far::First {
                seen: seen.range(range.clone()),
                most: usize::try_from(chunk.end() / u64::from(config.ratios[number])).unwrap_or(usize::MAX),
            },
            (None, None) => Far::First {
                seen: self.none(tokens)?,
                most: 0,
            },
        };
        let compressed = kept.get(1).map_or(own.all(), |rows| rows.all());
        let keys = Keys {
            window: window.bytes,
            reach,
            compressed,
            far,
            dim,
            rotary,
            sinks: weights.sinks.all(),
        };
        let of_token = keys.scratch(tokens);
        let scratch = self.take(of_token * (SCRATCH / of_token.max(1)).clamp(1, tokens))?;
        let width = config.n_head * dim;
        let of_chunk = range.start * width..range.end * width;
        let positions = self.positions.range(range);
        attend(
            self.device,
            queries.range(of_chunk.clone()),
            positions,
            &keys,
            scratch,
            out.range(of_chunk),
        )?;
        let last = chunk.start.max((chunk.end() + 1).saturating_sub(reach as u64))..chunk.end();
        window.hand_back(self, own.all(), own.row, last)?;
        self.arena.release(mark);
        Ok(())
    }

    /// No compressed rows for any token.
    fn none(&self, tokens: usize) -> Result<Slice<'a, u32>, MetalError> {
        self.arena.upload(self.device, &vec![0; tokens])
    }

    /// Each group of heads through its own rows of the first matrix, then all of them through the second.
    fn output(&self, weights: &Attention, heads: Slice<'a, f32>) -> Result<Slice<'a, f32>, MetalError> {
        let config = self.config;
        let (groups, rank, width) = (config.o_groups, config.o_lora, weights.out_a.cols());
        // A group of a token's heads is to its matrix what a token is to its expert.
        let count = heads.len() / width;
        let ids: Vec<u32> = (0..count)
            .map(|i| u32::try_from(i % groups).unwrap_or(u32::MAX))
            .collect();
        let ids = self.arena.upload(self.device, &ids)?;
        let x: Input<'a> = self.input(heads, width);
        let x = x.quantized(Form::of(weights.out_a.format()))?;
        let choices = Choices {
            experts: ids,
            weights: Slice::cast(ids),
            used: groups,
        };
        let together = if count <= FEW {
            Together::One
        } else {
            Together::of(self.device, self.grouped(ids, groups)?, count)
        };
        let low = self.take(count * rank)?;
        experts::down(self.device, weights.out_a.all(), rank, x, choices, together, low)?;
        self.input(low, groups * rank).times(&weights.out_b)
    }

    /// Choices of `count` experts sorted by expert.
    pub(crate) fn grouped(&self, experts: Slice<'a, u32>, count: usize) -> Result<Groups<'a>, MetalError> {
        let groups = Groups {
            order: self.take(experts.len())?,
            starts: self.take(count + 1)?,
        };
        group(self.device, experts, groups)?;
        Ok(groups)
    }
}
