//! Compressed rows: pooled, normalised, rotated and stored as their group completes.

use std::ops::Range;

use ds4_kernels::ops::compressor::Slot;
use ds4_kernels::{Backend, each_piece};

use crate::graph::Graph;
use crate::kv::Kv;
use crate::layer::Compressor;
use crate::layout::floats;
use crate::matrix::Input;
use crate::pass::Pass;
use crate::{KvKind, Numerics};

/// What a group is pooled from and how its row is finished.
struct Pooling<'a> {
    layer: usize,
    compressor: &'a Compressor,
    state: KvKind,
    ratio: u64,
}

impl<B: Backend> Graph<B> {
    /// Appends the compressor's input of each token to the state and a row for every group that completes. `x` is `[tokens][n_embd]`.
    pub(crate) fn compress(
        &self,
        layer: usize,
        compressor: &Compressor,
        kind: KvKind,
        x: &Input<'_, B>,
        pass: &mut Pass<'_, '_>,
    ) {
        let state = if kind == KvKind::Indexer {
            KvKind::IndexerState
        } else {
            KvKind::CompressorState
        };
        let ratio = u64::from(self.config().ratios[layer]);
        let (values, gates) = (
            self.project(&compressor.values, x),
            self.project(&compressor.gates, x),
        );
        let pooling = Pooling {
            layer,
            compressor,
            state,
            ratio,
        };
        let width = compressor.values.rows();
        for (range, part) in pass.ranges().into_iter().zip(pass.parts.iter_mut()) {
            let range = range.start * width..range.end * width;
            append_state(&pooling, &values[range.clone()], &gates[range], part.kv);
            let start = part.kv.frontier();
            let groups = start / ratio..(start + part.tokens.len() as u64) / ratio;
            self.append_groups(&pooling, kind, groups, part.kv);
        }
    }

    fn append_groups(&self, pooling: &Pooling<'_>, kind: KvKind, groups: Range<u64>, kv: &mut Kv) {
        if groups.is_empty() {
            return;
        }
        #[allow(clippy::cast_possible_truncation)] // groups of one pass
        let count = (groups.end - groups.start) as usize;
        let mut rows = kv.take_rows(pooling.layer, kind);
        let size = rows.row_bytes();
        let (out, from) = (rows.grow(groups.start, count), &*kv);
        each_piece(
            self.backend(),
            out,
            std::iter::repeat_n(size, count),
            &|i, out| {
                let mut row = self.pooled(pooling, groups.start + i as u64, from);
                self.encode(kind, &mut row, out);
            },
        );
        kv.put_rows(pooling.layer, kind, rows);
    }

    /// The pooled, normalised and rotated row of a complete group.
    fn pooled(&self, pooling: &Pooling<'_>, group: u64, kv: &Kv) -> Vec<f32> {
        let Pooling {
            layer,
            compressor,
            state,
            ratio,
        } = *pooling;
        let ops = self.backend().ops();
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
        let slot = |(position, row): (u64, _)| {
            let row: &[f32] = row;
            let half = usize::from(overlap && position >= group * ratio) * out_width;
            Slot {
                values: &row[half..half + out_width],
                gates: &row[width + half..width + half + out_width],
            }
        };
        let slots: Vec<Slot<'_>> = (first..).zip(rows.chunks_exact(2 * width)).map(slot).collect();
        let mut row = vec![0.0; out_width];
        (ops.pool)(&slots, &mut row);
        (ops.rms)(&mut row, Some(&compressor.norm), self.config().rms_eps);
        (ops.rotate)(&self.rope(layer).at(group * ratio), &mut row);
        row
    }

    /// Writes a row in the numerics' encoding; the row's values are spent.
    pub(crate) fn encode(&self, kind: KvKind, row: &mut [f32], out: &mut [u8]) {
        let ops = self.backend().ops();
        match (self.numerics(), kind) {
            (Numerics::Reference, _) => write_floats(row, out),
            (Numerics::Canonical, KvKind::Indexer) => (ops.encode_indexer)(row, out),
            (Numerics::Canonical, _) => (ops.encode_kv)(row, self.config().n_rot, out),
        }
    }

    /// The values of a stored window or compressed row.
    pub(crate) fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        match self.numerics() {
            Numerics::Reference => out.iter_mut().zip(floats(bytes)).for_each(|(out, x)| *out = x),
            Numerics::Canonical => (self.backend().ops().decode_kv)(bytes, self.config().n_rot, out),
        }
    }
}

/// Values, then gates with their position's bias, of every token.
fn append_state(pooling: &Pooling<'_>, values: &[f32], gates: &[f32], kv: &mut Kv) {
    let width = pooling.compressor.values.rows();
    let start = kv.frontier();
    let mut rows = kv.take_rows(pooling.layer, pooling.state);
    let size = rows.row_bytes();
    let out = rows.grow(start, values.len() / width);
    let tokens = values.chunks_exact(width).zip(gates.chunks_exact(width));
    for ((position, (values, gates)), out) in (start..).zip(tokens).zip(out.chunks_exact_mut(size)) {
        #[allow(clippy::cast_possible_truncation)] // below the ratio
        let slot = (position % pooling.ratio) as usize;
        let bias = &pooling.compressor.bias[slot * width..(slot + 1) * width];
        let (first, second) = out.split_at_mut(size / 2);
        write_floats(values, first);
        for ((gate, bias), out) in gates.iter().zip(bias).zip(second.as_chunks_mut::<4>().0) {
            *out = (gate + bias).to_le_bytes();
        }
    }
    kv.put_rows(pooling.layer, pooling.state, rows);
}

fn write_floats(values: &[f32], out: &mut [u8]) {
    for (x, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
        *out = x.to_le_bytes();
    }
}
