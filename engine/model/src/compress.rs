//! Compressed rows: pooled, normalised, rotated and stored as their group completes.

use ds4_kernels::Backend;
use ds4_kernels::codec::{decode_indexer, decode_kv, encode_indexer, encode_kv};
use ds4_kernels::ops::compressor::{Slot, pool};
use ds4_kernels::ops::norm::rms;

use crate::graph::Graph;
use crate::kv::Kv;
use crate::layer::Compressor;
use crate::layout::floats;
use crate::matrix::multiply;
use crate::{KvKind, Numerics};

impl<B: Backend> Graph<B> {
    /// Appends the compressor's input of each token to the state and a row for every group that completes. `x` is `[tokens][n_embd]`.
    pub(crate) fn compress(
        &self,
        layer: usize,
        compressor: &Compressor,
        kind: KvKind,
        x: &[f32],
        kv: &mut Kv,
    ) {
        let state = if kind == KvKind::Indexer {
            KvKind::IndexerState
        } else {
            KvKind::CompressorState
        };
        let ratio = u64::from(self.config().ratios[layer]);
        let start = kv.frontier();
        self.append_state(layer, compressor, state, x, kv);
        let end = start + (x.len() / self.config().n_embd) as u64;
        for group in start / ratio..end / ratio {
            let row = self.pooled(layer, compressor, state, group, kv);
            self.store(layer, kind, group, row, kv);
        }
    }

    fn append_state(&self, layer: usize, compressor: &Compressor, state: KvKind, x: &[f32], kv: &mut Kv) {
        let width = compressor.values.rows();
        let weights = self.weights();
        let project = |matrix: &crate::matrix::Weight| {
            multiply(
                self.backend(),
                self.numerics(),
                &matrix.part(weights, 0, matrix.rows()),
                x,
            )
        };
        let (values, gates) = (project(&compressor.values), project(&compressor.gates));
        let start = kv.frontier();
        let ratio = self.config().ratios[layer] as usize;
        let Some(rows) = kv.rows_mut(layer, state) else {
            return;
        };
        let out = rows.tail(start);
        let tokens = values.chunks_exact(width).zip(gates.chunks_exact(width));
        for (position, (values, gates)) in (start..).zip(tokens) {
            #[allow(clippy::cast_possible_truncation)] // below the ratio
            let slot = (position % ratio as u64) as usize;
            let bias = &compressor.bias[slot * width..(slot + 1) * width];
            out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            out.extend(
                gates
                    .iter()
                    .zip(bias)
                    .flat_map(|(gate, bias)| (gate + bias).to_le_bytes()),
            );
        }
    }

    /// The pooled, normalised and rotated row of a complete group.
    fn pooled(&self, layer: usize, compressor: &Compressor, state: KvKind, group: u64, kv: &Kv) -> Vec<f32> {
        let ratio = u64::from(self.config().ratios[layer]);
        let (width, out_width) = (compressor.values.rows(), compressor.norm.len());
        let overlap = width == 2 * out_width;
        let first = if overlap {
            group.saturating_sub(1) * ratio
        } else {
            group * ratio
        };
        let bytes = match kv.read(layer, state, first..(group + 1) * ratio) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("live state rows are kept: {error}"),
        };
        let rows: Vec<f32> = floats(bytes).collect();
        let slots: Vec<Slot<'_>> = (first..)
            .zip(rows.chunks_exact(2 * width))
            .map(|(position, row)| {
                let half = if overlap && position >= group * ratio {
                    out_width
                } else {
                    0
                };
                Slot {
                    values: &row[half..half + out_width],
                    gates: &row[width + half..width + half + out_width],
                }
            })
            .collect();
        let mut row = vec![0.0; out_width];
        pool(&slots, &mut row);
        rms(&mut row, Some(&compressor.norm), self.config().rms_eps);
        self.rope(layer).at(group * ratio).apply(&mut row);
        row
    }

    /// Stores a row in the numerics' encoding.
    pub(crate) fn store(&self, layer: usize, kind: KvKind, number: u64, mut row: Vec<f32>, kv: &mut Kv) {
        let Some(rows) = kv.rows_mut(layer, kind) else {
            return;
        };
        let out = rows.tail(number);
        match (self.numerics(), kind) {
            (Numerics::Reference, _) => out.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            (Numerics::Canonical, KvKind::Indexer) => encode_indexer(&mut row, out),
            (Numerics::Canonical, _) => encode_kv(&row, self.config().n_rot, out),
        }
    }

    /// The values of a stored row.
    pub(crate) fn restore(&self, kind: KvKind, bytes: &[u8], out: &mut [f32]) {
        match (self.numerics(), kind) {
            (Numerics::Reference, _) => out.iter_mut().zip(floats(bytes)).for_each(|(out, x)| *out = x),
            (Numerics::Canonical, KvKind::Indexer) => decode_indexer(bytes, out),
            (Numerics::Canonical, _) => decode_kv(bytes, self.config().n_rot, out),
        }
    }

    /// The values of stored rows, `[rows][width]`, decoded by all threads.
    pub(crate) fn restore_all(
        &self,
        layer: usize,
        kind: KvKind,
        rows: std::ops::Range<u64>,
        width: usize,
        kv: &Kv,
    ) -> Vec<f32> {
        let row_bytes = kv.layout().row_bytes(layer, kind);
        let bytes = match kv.read(layer, kind, rows) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("rows of the frontier are kept: {error}"),
        };
        let mut values = vec![0.0; bytes.len() / row_bytes * width];
        self.backend().each_row(&mut values, width, &|i, out| {
            self.restore(kind, &bytes[i * row_bytes..(i + 1) * row_bytes], out);
        });
        values
    }
}
