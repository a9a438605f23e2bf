//! Every token over the rows that it sees, read from the KV as they are stored.

use std::cell::RefCell;
use std::ops::Range;

use ds4_kernels::ops::attention::attend;
use ds4_kernels::{Backend, each_piece};

use crate::graph::Graph;
use crate::pass::Pass;
use crate::{Kv, KvKind};

/// Tokens that share one decoding of the rows they have in common: their windows overlap but for as many rows.
const BLOCK: usize = 16;

thread_local! {
    /// Decoded rows and attention weights of the block at hand: kept, since a fresh megabyte per token and layer is paid in page faults.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

struct Scratch {
    window: Vec<f32>,
    compressed: Vec<f32>,
    picked: Vec<f32>,
    weights: Vec<f32>,
}

impl Scratch {
    const fn new() -> Self {
        Self {
            window: Vec::new(),
            compressed: Vec::new(),
            picked: Vec::new(),
            weights: Vec::new(),
        }
    }
}

/// Some tokens of one part and some of their heads: what one task computes.
struct Block {
    part: usize,
    tokens: Range<usize>,
    heads: Range<usize>,
}

impl<B: Backend> Graph<B> {
    /// Replaces `queries`, `[tokens][heads][head_dim]`, by their attention, rotated back. `picks` holds each token's compressed rows where it
    /// does not see all of them.
    pub(crate) fn attend(
        &self,
        layer: usize,
        sinks: &[f32],
        queries: &mut [f32],
        picks: &[Option<Vec<u32>>],
        pass: &Pass<'_, '_>,
    ) {
        let blocks = self.blocks(pass);
        let values = |block: &Block| block.tokens.len() * block.heads.len() * self.config().head_dim;
        each_piece(self.backend(), queries, blocks.iter().map(values), &|i, heads| {
            SCRATCH.with_borrow_mut(|scratch| {
                self.attend_block(layer, sinks, heads, picks, pass, &blocks[i], scratch);
            });
        });
    }

    /// Whole tokens where there are enough of them for all threads, else some heads of one token each.
    fn blocks(&self, pass: &Pass<'_, '_>) -> Vec<Block> {
        let (tokens, threads, heads) = (pass.tokens.len(), self.backend().threads(), self.config().n_head);
        let most = if tokens < threads {
            1
        } else {
            tokens.div_ceil(4 * threads).min(BLOCK)
        };
        let share = if tokens < threads {
            heads.div_ceil(threads.div_ceil(tokens))
        } else {
            heads
        };
        let of_run = |(part, tokens): (usize, Range<usize>)| {
            let starts = (0..heads).step_by(share);
            starts.map(move |first| Block {
                part,
                tokens: tokens.clone(),
                heads: first..heads.min(first + share),
            })
        };
        pass.runs(most).into_iter().flat_map(of_run).collect()
    }

    #[allow(clippy::too_many_arguments)] // one task's view of the pass
    fn attend_block(
        &self,
        layer: usize,
        sinks: &[f32],
        heads: &mut [f32],
        picks: &[Option<Vec<u32>>],
        pass: &Pass<'_, '_>,
        block: &Block,
        scratch: &mut Scratch,
    ) {
        let (config, ops) = (self.config(), self.backend().ops());
        let (dim, window) = (config.head_dim, config.window as u64);
        #[allow(clippy::cast_precision_loss)] // a few hundred
        let scale = 1.0 / (dim as f32).sqrt();
        let kv = &*pass.parts[block.part].kv;
        let rotations = pass.rotations(config.ratios[layer] != 0);
        let positions = pass.positions[block.tokens.start]..pass.positions[block.tokens.end - 1] + 1;
        let behind = |position: u64| (position + 1).saturating_sub(window);
        let nearest = behind(positions.start);
        self.decode_rows(
            layer,
            KvKind::Window,
            nearest..positions.end,
            kv,
            &mut scratch.window,
        );
        let unpicked = block.tokens.clone().filter(|token| picks[*token].is_none());
        let seen = |token: usize| self.seen(layer, pass.positions[token]);
        let most = unpicked.map(seen).max().unwrap_or(0);
        self.decode_rows(layer, KvKind::Compressed, 0..most, kv, &mut scratch.compressed);
        for (token, heads) in block
            .tokens
            .clone()
            .zip(heads.chunks_exact_mut(block.heads.len() * dim))
        {
            let position = pass.positions[token];
            let near = rows(
                &scratch.window,
                behind(position) - nearest..position + 1 - nearest,
                dim,
            );
            let far = match &picks[token] {
                Some(picks) => self.decode_picks(layer, picks, kv, &mut scratch.picked),
                None => rows(&scratch.compressed, 0..seen(token), dim),
            };
            let sinks = &sinks[block.heads.clone()];
            attend(ops, heads, dim, scale, sinks, &[far, near], &mut scratch.weights);
            for head in heads.chunks_exact_mut(dim) {
                (ops.rotate_back)(&rotations[token], head);
            }
        }
    }

    /// Compressed rows that a token at `position` can see.
    pub(crate) fn seen(&self, layer: usize, position: u64) -> u64 {
        (position + 1)
            .checked_div(u64::from(self.config().ratios[layer]))
            .unwrap_or(0)
    }

    /// Rows of one kind as numbers, `[rows][head_dim]`, at the start of `out`.
    fn decode_rows(&self, layer: usize, kind: KvKind, range: Range<u64>, kv: &Kv, out: &mut Vec<f32>) {
        if range.is_empty() {
            return;
        }
        let (dim, size) = (self.config().head_dim, kv.layout().row_bytes(layer, kind));
        let bytes = kv
            .read(layer, kind, range)
            .unwrap_or_else(|error| unreachable!("rows of the pass are kept: {error}"));
        reserve(out, bytes.len() / size * dim);
        for (row, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(dim)) {
            self.decode(row, out);
        }
    }

    /// The picked compressed rows as numbers.
    fn decode_picks<'a>(&self, layer: usize, picks: &[u32], kv: &Kv, out: &'a mut Vec<f32>) -> &'a [f32] {
        let (dim, size) = (
            self.config().head_dim,
            kv.layout().row_bytes(layer, KvKind::Compressed),
        );
        let all = kv.rows(layer, KvKind::Compressed);
        let bytes = kv
            .read(layer, KvKind::Compressed, all)
            .unwrap_or_else(|error| unreachable!("all rows are there: {error}"));
        reserve(out, picks.len() * dim);
        for (pick, out) in picks.iter().zip(out.chunks_exact_mut(dim)) {
            let at = *pick as usize * size;
            self.decode(&bytes[at..at + size], out);
        }
        &out[..picks.len() * dim]
    }
}

#[allow(clippy::cast_possible_truncation)] // rows of a vector
fn rows(values: &[f32], range: Range<u64>, dim: usize) -> &[f32] {
    &values[range.start as usize * dim..range.end as usize * dim]
}

fn reserve(out: &mut Vec<f32>, values: usize) {
    if out.len() < values {
        out.resize(values, 0.0);
    }
}
