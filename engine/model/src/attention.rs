//! Attention over the window and the compressed rows: queries, window rows, outputs.

use ds4_kernels::ops::rope::Rotation;
use ds4_kernels::{Backend, Buffer, each_row_of_two};

use crate::KvKind;
use crate::graph::Graph;
use crate::layer::Attention;
use crate::matrix::{Input, Weight};
use crate::pass::Pass;

impl<B: Backend> Graph<B> {
    /// The block's output `[tokens][n_embd]` for its normalised input; appends rows of all kinds to the KV of every part.
    pub(crate) fn attention(
        &self,
        layer: usize,
        weights: &Attention,
        x: &Input<'_, B>,
        pass: &mut Pass<'_, '_>,
    ) -> Buffer<'_> {
        let mut low = self.project(&weights.q_a, x);
        self.normalise(&mut low, &weights.q_a_norm);
        let low = self.input(&low, weights.q_b.cols());
        let rotations = pass.rotations(weights.compressor.is_some());
        let mut heads = self.queries(&weights.q_b, &low, rotations);
        self.append_window(layer, weights, x, pass);
        if let Some(compressor) = &weights.compressor {
            self.compress(layer, compressor, KvKind::Compressed, x, pass);
        }
        let picks = match &weights.indexer {
            Some(indexer) => {
                self.compress(layer, &indexer.compressor, KvKind::Indexer, x, pass);
                self.select(layer, indexer, x, &low, pass)
            }
            None => vec![None; pass.tokens.len()],
        };
        self.attend(layer, &weights.sinks, &mut heads, &picks, pass);
        self.output(weights, &heads)
    }

    /// Values `[tokens][cols]` that several matrices take.
    pub(crate) fn input<'a>(&'a self, values: &'a [f32], cols: usize) -> Input<'a, B> {
        Input::new(self.backend(), self.numerics(), values, cols)
    }

    /// `[tokens][rows]`.
    pub(crate) fn project(&self, weight: &Weight, x: &Input<'_, B>) -> Buffer<'_> {
        let matrix = weight.stack(self.weights());
        let mut y = self.buffers().take(x.tokens() * matrix.rows());
        x.times(&matrix, &mut y);
        y
    }

    /// `[tokens][heads][head_dim]`, normalised per head and rotated.
    fn queries(&self, weight: &Weight, low: &Input<'_, B>, rotations: &[Rotation]) -> Buffer<'_> {
        let (config, ops) = (self.config(), self.backend().ops());
        let mut queries = self.project(weight, low);
        let width = config.n_head * config.head_dim;
        self.backend().each_row(&mut queries, width, &|token, heads| {
            for head in heads.chunks_exact_mut(config.head_dim) {
                (ops.rms)(head, None, config.rms_eps);
                (ops.rotate)(&rotations[token], head);
            }
        });
        queries
    }

    fn append_window(&self, layer: usize, weights: &Attention, x: &Input<'_, B>, pass: &mut Pass<'_, '_>) {
        let (config, ops) = (self.config(), self.backend().ops());
        let mut values = self.project(&weights.kv, x);
        let compressed = weights.compressor.is_some();
        for (part, range) in pass.ranges().into_iter().enumerate() {
            let start = pass.parts[part].kv.frontier();
            let mut rows = pass.parts[part].kv.take_rows(layer, KvKind::Window);
            let widths = (config.head_dim, rows.row_bytes());
            let values = &mut values[range.start * config.head_dim..range.end * config.head_dim];
            let rotations = &pass.rotations(compressed)[range.clone()];
            let out = rows.grow(start, range.len());
            each_row_of_two(self.backend(), (values, out), widths, &|i, row, out| {
                (ops.rms)(row, Some(&weights.kv_norm), config.rms_eps);
                (ops.rotate)(&rotations[i], row);
                self.encode(KvKind::Window, row, out);
            });
            pass.parts[part].kv.put_rows(layer, KvKind::Window, rows);
        }
    }

    /// Each group of heads through its own rows of the first matrix, then all of them through the second.
    fn output(&self, weights: &Attention, heads: &[f32]) -> Buffer<'_> {
        let config = self.config();
        let (groups, width) = (config.o_groups, weights.out_a.cols());
        let tokens = heads.len() / (groups * width);
        let heads = self.input(heads, width);
        let matrix = weights.out_a.stack(self.weights());
        let mut low = self.buffers().take(tokens * matrix.rows());
        self.backend()
            .matmul_groups(&matrix, groups, heads.for_weights(matrix.format()), &mut low);
        self.project(&weights.out_b, &self.input(&low, matrix.rows()))
    }
}
