//! Attention over the window and the compressed rows.

use ds4_kernels::Backend;
use ds4_kernels::codec::{decode_indexer, encode_indexer};
use ds4_kernels::ops::attention::attend;
use ds4_kernels::ops::indexer::{score, top_k};
use ds4_kernels::ops::norm::rms;
use ds4_kernels::ops::rope::Rotation;

use crate::graph::Graph;
use crate::kv::Kv;
use crate::layer::{Attention, Indexer};
use crate::matrix::{Weight, multiply};
use crate::{KvKind, Numerics};

/// Tokens whose indexer scores are held at once: bounds memory at `tokens * rows` numbers.
const SCORED: usize = 128;

/// Decoded rows and which of them each token sees.
struct Compressed {
    values: Vec<f32>,
    visible: Vec<Vec<usize>>,
}

impl<B: Backend> Graph<B> {
    /// The block's output `[tokens][n_embd]` for its normalised input; appends rows of all kinds to `kv`.
    pub(crate) fn attention(&self, layer: usize, weights: &Attention, x: &[f32], kv: &mut Kv) -> Vec<f32> {
        let config = self.config();
        let tokens = x.len() / config.n_embd;
        let start = kv.frontier();
        let rotations: Vec<Rotation> = (start..)
            .take(tokens)
            .map(|position| self.rope(layer).at(position))
            .collect();
        let mut low = self.project(&weights.q_a, x);
        self.normalise(&mut low, &weights.q_a_norm);
        let queries = self.queries(&weights.q_b, &low, &rotations);
        self.append_window(layer, weights, x, &rotations, kv);
        let compressed = self.compressed(layer, weights, x, &low, &rotations, kv);
        let window = self.window(layer, start, tokens, kv);
        let mut heads = self.attend(weights, &queries, &window, &compressed, start);
        let width = config.n_head * config.head_dim;
        self.backend().each_row(&mut heads, width, &|token, heads| {
            for head in heads.chunks_exact_mut(config.head_dim) {
                rotations[token].apply_inverse(head);
            }
        });
        self.output(weights, &heads)
    }

    pub(crate) fn project(&self, weight: &Weight, x: &[f32]) -> Vec<f32> {
        multiply(
            self.backend(),
            self.numerics(),
            &weight.part(self.weights(), 0, weight.rows()),
            x,
        )
    }

    /// `[tokens][heads][head_dim]`, normalised per head and rotated.
    fn queries(&self, weight: &Weight, low: &[f32], rotations: &[Rotation]) -> Vec<f32> {
        let config = self.config();
        let mut queries = self.project(weight, low);
        let width = config.n_head * config.head_dim;
        self.backend().each_row(&mut queries, width, &|token, heads| {
            for head in heads.chunks_exact_mut(config.head_dim) {
                rms(head, None, config.rms_eps);
                rotations[token].apply(head);
            }
        });
        queries
    }

    fn append_window(
        &self,
        layer: usize,
        weights: &Attention,
        x: &[f32],
        rotations: &[Rotation],
        kv: &mut Kv,
    ) {
        let mut rows = self.project(&weights.kv, x);
        self.normalise(&mut rows, &weights.kv_norm);
        let start = kv.frontier();
        for ((position, row), rotation) in (start..)
            .zip(rows.chunks_exact_mut(self.config().head_dim))
            .zip(rotations)
        {
            rotation.apply(row);
            self.store(layer, KvKind::Window, position, row.to_vec(), kv);
        }
    }

    /// The rows that the chunk's tokens see by window: from `start - (window - 1)` on.
    fn window(&self, layer: usize, start: u64, tokens: usize, kv: &Kv) -> Vec<f32> {
        let first = start.saturating_sub(self.config().window as u64 - 1);
        self.restore_all(
            layer,
            KvKind::Window,
            first..start + tokens as u64,
            self.config().head_dim,
            kv,
        )
    }

    #[allow(clippy::cast_possible_truncation)] // row numbers index vectors
    fn compressed(
        &self,
        layer: usize,
        weights: &Attention,
        x: &[f32],
        low: &[f32],
        rotations: &[Rotation],
        kv: &mut Kv,
    ) -> Compressed {
        let config = self.config();
        let Some(compressor) = &weights.compressor else {
            return Compressed {
                values: Vec::new(),
                visible: vec![Vec::new(); rotations.len()],
            };
        };
        self.compress(layer, compressor, KvKind::Compressed, x, kv);
        if let Some(indexer) = &weights.indexer {
            self.compress(layer, &indexer.compressor, KvKind::Indexer, x, kv);
        }
        let start = kv.frontier();
        let ratio = u64::from(config.ratios[layer]);
        let seen: Vec<usize> = (start..)
            .take(rotations.len())
            .map(|t| ((t + 1) / ratio) as usize)
            .collect();
        let mut visible = match &weights.indexer {
            Some(indexer) => self.select(layer, indexer, x, low, rotations, &seen, kv),
            None => seen.iter().map(|seen| (0..*seen).collect()).collect(),
        };
        if let [only] = visible.as_mut_slice() {
            // One token decodes the rows that it sees; a chunk decodes all rows once.
            let values = only.iter().flat_map(|row| {
                self.restore_all(
                    layer,
                    KvKind::Compressed,
                    *row as u64..*row as u64 + 1,
                    config.head_dim,
                    kv,
                )
            });
            let values = values.collect();
            *only = (0..only.len()).collect();
            return Compressed { values, visible };
        }
        let rows = kv.rows(layer, KvKind::Compressed);
        Compressed {
            values: self.restore_all(layer, KvKind::Compressed, rows, config.head_dim, kv),
            visible,
        }
    }

    /// For each token the compressed rows that the indexer keeps, ascending.
    #[allow(clippy::too_many_arguments)] // all are views of one chunk
    fn select(
        &self,
        layer: usize,
        indexer: &Indexer,
        x: &[f32],
        low: &[f32],
        rotations: &[Rotation],
        seen: &[usize],
        kv: &Kv,
    ) -> Vec<Vec<usize>> {
        let config = self.config();
        let (heads, dim, k) = (config.indexer.heads, config.indexer.dim, config.indexer.top_k);
        let most = seen.iter().copied().max().unwrap_or(0);
        if most <= k {
            return seen.iter().map(|seen| (0..*seen).collect()).collect();
        }
        let rows = self.restore_all(layer, KvKind::Indexer, 0..most as u64, dim, kv);
        let queries = self.indexer_queries(&indexer.queries, low, rotations);
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let factor = 1.0 / libm::sqrtf((heads * dim) as f32);
        let mut weights = self.project(&indexer.heads, x);
        weights.iter_mut().for_each(|weight| *weight *= factor);
        let score_batch = |(batch, seen): (usize, &[usize])| {
            let mut scores = vec![0.0; seen.len() * most];
            self.backend().each_row(&mut scores, most, &|i, scores| {
                let token = batch * SCORED + i;
                let queries = &queries[token * heads * dim..(token + 1) * heads * dim];
                let weights = &weights[token * heads..(token + 1) * heads];
                for (score_of, row) in scores[..seen[i]].iter_mut().zip(rows.chunks_exact(dim)) {
                    *score_of = score(self.backend(), queries, weights, row);
                }
            });
            let kept = seen.iter().zip(scores.chunks_exact(most));
            kept.map(|(seen, scores)| top_k(&scores[..*seen], k))
                .collect::<Vec<_>>()
        };
        seen.chunks(SCORED).enumerate().flat_map(score_batch).collect()
    }

    /// `[tokens][heads][dim]`, rotated, and in canonical numerics rounded as the rows are.
    fn indexer_queries(&self, weight: &Weight, low: &[f32], rotations: &[Rotation]) -> Vec<f32> {
        let (heads, dim) = (self.config().indexer.heads, self.config().indexer.dim);
        let mut queries = self.project(weight, low);
        self.backend().each_row(&mut queries, heads * dim, &|token, row| {
            let mut bytes = Vec::new();
            for head in row.chunks_exact_mut(dim) {
                rotations[token].apply(head);
                if self.numerics() == Numerics::Canonical {
                    bytes.clear();
                    encode_indexer(head, &mut bytes);
                    decode_indexer(&bytes, head);
                }
            }
        });
        queries
    }

    /// Compressed rows ascending, then window rows ascending: an order that depends on positions alone.
    fn attend(
        &self,
        weights: &Attention,
        queries: &[f32],
        window: &[f32],
        compressed: &Compressed,
        start: u64,
    ) -> Vec<f32> {
        let config = self.config();
        let (n_head, dim) = (config.n_head, config.head_dim);
        #[allow(clippy::cast_precision_loss)] // a few hundred
        let scale = 1.0 / libm::sqrtf(dim as f32);
        let behind = start.min(config.window as u64 - 1) as usize;
        let mut heads = vec![0.0; queries.len()];
        self.backend().each_row(&mut heads, dim, &|i, out| {
            let (token, head) = (i / n_head, i % n_head);
            let last = behind + token;
            let first = (last + 1).saturating_sub(config.window);
            let far = compressed.visible[token]
                .iter()
                .map(|row| &compressed.values[row * dim..(row + 1) * dim]);
            let rows: Vec<&[f32]> = far
                .chain(window[first * dim..(last + 1) * dim].chunks_exact(dim))
                .collect();
            attend(
                self.backend(),
                &queries[i * dim..(i + 1) * dim],
                &rows,
                weights.sinks[head],
                scale,
                out,
            );
        });
        heads
    }

    /// Each group of heads through its own rows of the first matrix, then all of them through the second.
    fn output(&self, weights: &Attention, heads: &[f32]) -> Vec<f32> {
        let config = self.config();
        let (groups, rank, width) = (config.o_groups, config.o_lora, weights.out_a.cols());
        let tokens = heads.len() / (groups * width);
        let mut low = vec![0.0; tokens * groups * rank];
        for group in 0..groups {
            let part: Vec<f32> = heads
                .chunks_exact(width)
                .skip(group)
                .step_by(groups)
                .flatten()
                .copied()
                .collect();
            let matrix = weights.out_a.part(self.weights(), group * rank, rank);
            let out = multiply(self.backend(), self.numerics(), &matrix, &part);
            for (token, row) in out.chunks_exact(rank).enumerate() {
                let at = (token * groups + group) * rank;
                low[at..at + rank].copy_from_slice(row);
            }
        }
        self.project(&weights.out_b, &low)
    }
}
