//! Compressed rows: pooled, normalised, rotated and stored as their group completes.

use crate::kernels::codec::{Ring, encode_indexer, encode_kv};
use crate::kernels::compressor::{State, append, pool};
use crate::kernels::norm::{self, Rotated};
use crate::kernels::{DeviceError, Slice};
use ds4_model::KvKind;

use crate::input::Input;
use crate::load::{Attention, Compressor};
use crate::pass::Pass;
use crate::widened::Widened;

impl<'a> Pass<'a> {
    /// Appends the compressor's state of every token, and a row of each kind for every group that completes.
    pub(crate) fn compressed(
        &self,
        number: usize,
        index: usize,
        weights: &Attention,
        x: &Input<'a>,
    ) -> Result<(), DeviceError> {
        if let Some(compressor) = &weights.compressor {
            self.compress(
                number,
                index,
                compressor,
                KvKind::Compressed,
                KvKind::CompressorState,
                x,
            )?;
        }
        if let Some(indexer) = &weights.indexer {
            self.compress(
                number,
                index,
                &indexer.compressor,
                KvKind::Indexer,
                KvKind::IndexerState,
                x,
            )?;
        }
        Ok(())
    }

    fn compress(
        &self,
        number: usize,
        index: usize,
        compressor: &Compressor,
        kind: KvKind,
        state: KvKind,
        x: &Input<'a>,
    ) -> Result<(), DeviceError> {
        let (values, gates) = (x.times(&compressor.values)?, x.times(&compressor.gates)?);
        let ratio = u64::from(self.config.ratios[number]);
        for chunk in 0..self.chunks.len() {
            let mark = self.arena.mark();
            let groups = self.chunks[chunk].groups(ratio);
            let rows = self.pooled(number, index, chunk, compressor, state, values, gates)?;
            let of_layer = &self.chunks[chunk].session.layers[index];
            let Some(kept) = of_layer.iter().find(|rows| rows.kind == kind) else {
                unreachable!("layer {number} keeps {kind} rows");
            };
            let (to, dim) = (
                Ring {
                    bytes: kept.all(),
                    first: groups.start,
                },
                compressor.norm.len(),
            );
            match kind {
                KvKind::Indexer => encode_indexer(self.device, rows, dim, to)?,
                _ => encode_kv(self.device, rows, dim, self.config.n_rot, to)?,
            }
            self.arena.release(mark);
        }
        Ok(())
    }

    /// The pooled, normalised and rotated rows of the groups that a chunk completes; its tokens' state is appended.
    #[allow(clippy::too_many_arguments)] // one chunk's view of the pass
    fn pooled(
        &self,
        number: usize,
        index: usize,
        chunk: usize,
        compressor: &Compressor,
        state: KvKind,
        values: Slice<'a, f32>,
        gates: Slice<'a, f32>,
    ) -> Result<Slice<'a, f32>, DeviceError> {
        let (width, out_width) = (compressor.values.rows(), compressor.norm.len());
        let ratio = self.config.ratios[number] as usize;
        let rotations = self.rotations_of_groups(chunk, self.config.ratios[number])?;
        let chunk = &self.chunks[chunk];
        let (range, tokens) = (chunk.range.clone(), chunk.range.len());
        let Some(own) = chunk.session.layers[index].iter().find(|rows| rows.kind == state) else {
            unreachable!("layer {number} keeps {state} rows");
        };
        let layout_first = ds4_kernels::ops::compressor::live_from(ratio as u64, chunk.start);
        let slots = (2 * ratio + tokens).next_multiple_of(ratio);
        let ring = Widened::new(self, own.all(), own.row, layout_first..chunk.start, slots, tokens)?;
        let rows = State {
            rows: ring.bytes.cast(),
            width,
            ratio,
        };
        let of_chunk = range.start * width..range.end * width;
        let (values, gates) = (values.range(of_chunk.clone()), gates.range(of_chunk));
        append(
            self.device,
            values,
            gates,
            compressor.bias.all(),
            chunk.start,
            rows,
        )?;
        let groups = chunk.groups(ratio as u64);
        #[allow(clippy::cast_possible_truncation)] // groups of a chunk
        let out = self.take((groups.end - groups.start) as usize * out_width)?;
        pool(self.device, rows, groups.start, out_width, out)?;
        norm::rms(self.device, out, compressor.norm.all(), self.config.rms_eps, out)?;
        let rotary = self.config.n_rot;
        norm::rotate(
            self.device,
            Rotated {
                rows: out,
                dim: out_width,
                rotations,
                rotary,
                per: 1,
            },
            false,
        )?;
        let live = ds4_kernels::ops::compressor::live_from(ratio as u64, chunk.end());
        ring.hand_back(self, own.all(), own.row, chunk.start.max(live)..chunk.end())?;
        Ok(out)
    }
}
