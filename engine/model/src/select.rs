//! The indexer: which compressed rows a token attends to.

use std::cell::RefCell;
use std::ops::Range;

use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes};
use ds4_kernels::ops::Ops;
use ds4_kernels::ops::indexer::{IndexQueries, plain_scores, top_k, unpack_query};
use ds4_kernels::{Backend, each_piece, each_row_of_two};

use crate::graph::Graph;
use crate::layer::Indexer;
use crate::layout::floats;
use crate::matrix::Input;
use crate::pass::Pass;
use crate::{Kv, KvKind, Numerics};

/// Tokens that share one reading of the indexer's rows: bounds memory at as many scores per row and thread.
const BLOCK: usize = 16;
/// Rows scored by one task where a single token's rows are shared out: fewer take less time than waking a thread.
const SHARE: usize = 512;

thread_local! {
    /// Scores of the block at hand, kept for the next one.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The indexer's queries of all tokens of a pass.
struct Queries {
    heads: usize,
    dim: usize,
    /// `[tokens][heads]`.
    weights: Vec<f32>,
    form: Form,
}

enum Form {
    /// `[tokens][heads][dim]`.
    Plain(Vec<f32>),
    /// As [`IndexQueries`] has them.
    Coded { codes: Vec<i8>, scales: Vec<f32> },
}

impl Queries {
    /// `out[token][row]` for some tokens and encoded rows.
    fn scores(&self, ops: &Ops, tokens: Range<usize>, rows: &[u8], out: &mut [f32]) {
        let (heads, dim) = (self.heads, self.dim);
        let weights = &self.weights[tokens.start * heads..tokens.end * heads];
        let width = heads * dim;
        match &self.form {
            Form::Plain(values) => {
                let rows: Vec<f32> = floats(rows).collect();
                plain_scores(
                    ops,
                    &values[tokens.start * width..tokens.end * width],
                    dim,
                    weights,
                    &rows,
                    out,
                );
            }
            Form::Coded { codes, scales } => {
                let blocks = width / INDEXER_BLOCK;
                let (codes, scales) = (
                    &codes[tokens.start * width..tokens.end * width],
                    &scales[tokens.start * blocks..tokens.end * blocks],
                );
                (ops.index_scores)(
                    &IndexQueries {
                        heads,
                        dim,
                        codes,
                        scales,
                        weights,
                    },
                    rows,
                    out,
                );
            }
        }
    }
}

impl<B: Backend> Graph<B> {
    /// For each token the compressed rows that the indexer keeps, ascending; none where it sees no more than that many.
    pub(crate) fn select(
        &self,
        layer: usize,
        indexer: &Indexer,
        x: &Input<'_, B>,
        low: &Input<'_, B>,
        pass: &Pass<'_, '_>,
    ) -> Vec<Option<Vec<u32>>> {
        let k = self.config().indexer.top_k as u64;
        let mut picks = vec![None; pass.tokens.len()];
        if pass
            .positions
            .iter()
            .all(|position| self.seen(layer, *position) <= k)
        {
            return picks;
        }
        let queries = self.index_queries(indexer, x, low, pass);
        if pass.tokens.len() < self.backend().threads() {
            for (part, tokens) in pass.runs(1) {
                picks[tokens.start] = self.pick_one(layer, &queries, pass.parts[part].kv, tokens.start, pass);
            }
            return picks;
        }
        let most = pass
            .tokens
            .len()
            .div_ceil(4 * self.backend().threads())
            .min(BLOCK);
        let runs = pass.runs(most);
        let lengths = runs.iter().map(|(_, tokens)| tokens.len());
        each_piece(self.backend(), &mut picks, lengths, &|i, picks| {
            let (part, tokens) = &runs[i];
            self.pick(layer, &queries, pass.parts[*part].kv, tokens.clone(), pass, picks);
        });
        picks
    }

    /// Some tokens of one part, on this thread.
    fn pick(
        &self,
        layer: usize,
        queries: &Queries,
        kv: &Kv,
        tokens: Range<usize>,
        pass: &Pass<'_, '_>,
        picks: &mut [Option<Vec<u32>>],
    ) {
        let k = self.config().indexer.top_k;
        let seen = |token: usize| row_count(self.seen(layer, pass.positions[token]));
        let most = seen(tokens.end - 1);
        if most <= k {
            return;
        }
        SCORES.with_borrow_mut(|scores| {
            scores.clear();
            scores.resize(tokens.len() * most, 0.0);
            queries.scores(
                self.backend().ops(),
                tokens.clone(),
                indexer_rows(layer, most, kv),
                scores,
            );
            for ((token, scores), picks) in tokens.zip(scores.chunks_exact(most)).zip(picks) {
                *picks = (seen(token) > k).then(|| top_k(&scores[..seen(token)], k));
            }
        });
    }

    /// One token, its rows shared out over all threads.
    fn pick_one(
        &self,
        layer: usize,
        queries: &Queries,
        kv: &Kv,
        token: usize,
        pass: &Pass<'_, '_>,
    ) -> Option<Vec<u32>> {
        let (k, ops) = (self.config().indexer.top_k, self.backend().ops());
        let seen = row_count(self.seen(layer, pass.positions[token]));
        if seen <= k {
            return None;
        }
        let (rows, size) = (
            indexer_rows(layer, seen, kv),
            kv.layout().row_bytes(layer, KvKind::Indexer),
        );
        let share = seen.div_ceil(self.backend().threads()).next_multiple_of(SHARE);
        let mut scores = vec![0.0; seen];
        let lengths = (0..seen).step_by(share).map(|first| share.min(seen - first));
        each_piece(self.backend(), &mut scores, lengths, &|i, scores| {
            let first = i * share;
            let rows = &rows[first * size..(first + scores.len()) * size];
            queries.scores(ops, token..token + 1, rows, scores);
        });
        Some(top_k(&scores, k))
    }

    /// Queries rotated, and in canonical numerics rounded as the rows are.
    fn index_queries(
        &self,
        indexer: &Indexer,
        x: &Input<'_, B>,
        low: &Input<'_, B>,
        pass: &Pass<'_, '_>,
    ) -> Queries {
        let (heads, dim, ops) = (
            self.config().indexer.heads,
            self.config().indexer.dim,
            self.backend().ops(),
        );
        let rotations = pass.rotations(true);
        let mut values = self.project(&indexer.queries, low);
        let width = heads * dim;
        self.backend().each_row(&mut values, width, &|token, row| {
            row.chunks_exact_mut(dim)
                .for_each(|head| (ops.rotate)(&rotations[token], head));
        });
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let factor = 1.0 / (width as f32).sqrt();
        let mut weights = self.project(&indexer.heads, x).to_vec();
        weights.iter_mut().for_each(|weight| *weight *= factor);
        let form = match self.numerics() {
            Numerics::Reference => Form::Plain(values.to_vec()),
            Numerics::Canonical => self.code(&mut values),
        };
        Queries {
            heads,
            dim,
            weights,
            form,
        }
    }

    fn code(&self, values: &mut [f32]) -> Form {
        let (heads, dim, ops) = (
            self.config().indexer.heads,
            self.config().indexer.dim,
            self.backend().ops(),
        );
        let (width, size, blocks) = (heads * dim, indexer_row_bytes(dim), dim / INDEXER_BLOCK);
        let tokens = values.len() / width;
        let mut bytes = vec![0; tokens * heads * size];
        each_row_of_two(
            self.backend(),
            (values, &mut bytes),
            (width, heads * size),
            &|_, row, bytes| {
                let heads = row.chunks_exact_mut(dim).zip(bytes.chunks_exact_mut(size));
                heads.for_each(|(head, bytes)| (ops.encode_indexer)(head, bytes));
            },
        );
        let (mut codes, mut scales) = (vec![0; tokens * width], vec![0.0; tokens * heads * blocks]);
        let rows = codes.chunks_exact_mut(dim).zip(scales.chunks_exact_mut(blocks));
        rows.zip(bytes.chunks_exact(size))
            .for_each(|((codes, scales), bytes)| unpack_query(bytes, codes, scales));
        Form::Coded { codes, scales }
    }
}

/// The indexer's first `count` rows.
fn indexer_rows(layer: usize, count: usize, kv: &Kv) -> &[u8] {
    kv.read(layer, KvKind::Indexer, 0..count as u64)
        .unwrap_or_else(|error| unreachable!("rows of the pass are kept: {error}"))
}

#[allow(clippy::cast_possible_truncation)] // rows in memory
const fn row_count(rows: u64) -> usize {
    rows as usize
}
