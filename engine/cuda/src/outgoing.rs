//! Rows that a pass computed, on their way to the host.

use std::ops::Range;

use ds4_kernels_cuda::{CudaError, Readback, Segments, Staging};
use ds4_model::{Kv, KvKind, NewRows, Part};

use crate::pass::Pass;

/// Rows of one kind that the host lacks.
struct Wanted {
    /// The part of the pass.
    part: usize,
    layer: usize,
    /// The layer in the session, and the kind in the layer.
    index: usize,
    of_layer: usize,
    kind: KvKind,
    rows: Range<u64>,
    bytes: usize,
}

/// The rows that every part's KV gets. Those of a layer leave as soon as it is computed, beside the computing of the next; the host waits for them when it has
/// the streams.
pub(crate) struct Outgoing<'a> {
    /// In the order in which they leave: by layer, then by part.
    wanted: Vec<Wanted>,
    readback: Readback<'a>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(
        pass: &Pass<'a>,
        parts: &[Part<'_>],
        staging: &'a mut Staging,
    ) -> Result<Self, CudaError> {
        let mut wanted: Vec<Wanted> = parts
            .iter()
            .enumerate()
            .flat_map(|(number, part)| wanted(number, part.kv, part.tokens.len()))
            .collect();
        wanted.sort_by_key(|rows| rows.index);
        let bytes = wanted.iter().map(|rows| rows.bytes).sum();
        let readback = Readback::new(pass.device, staging, bytes)?;
        Ok(Self { wanted, readback })
    }

    /// Sends the rows of computed layers, by their place in the pass. The memory that they are gathered in is taken for the rest of the pass.
    pub(crate) fn send(&mut self, pass: &Pass<'_>, layers: &Range<usize>) -> Result<(), CudaError> {
        let leaving = || self.wanted.iter().filter(|rows| layers.contains(&rows.index));
        let out = pass.take(leaving().map(|rows| rows.bytes).sum())?;
        let (mut segments, mut at) = (Segments::default(), 0);
        for rows in leaving() {
            let of_kind = &pass.chunks[rows.part].session.layers[rows.index][rows.of_layer];
            for bytes in of_kind.segments(rows.rows.clone()) {
                segments.push(
                    of_kind.all().range(bytes.clone()),
                    out.range(at..at + bytes.len()),
                );
                at += bytes.len();
            }
        }
        segments.run(pass.device, pass.arena)?;
        self.readback.copy(out)
    }

    /// Waits for the rows and gives them to the parts, with the device's own rows. All layers must have been sent.
    pub(crate) fn deliver(mut self, pass: Pass<'_>, parts: &mut [Part<'_>]) -> Result<(), CudaError> {
        let mut bytes = self.readback.bytes()?;
        let mut new: Vec<Vec<NewRows<'_>>> = parts.iter().map(|_| Vec::new()).collect();
        for rows in &self.wanted {
            let (of_kind, rest) = bytes.split_at(rows.bytes);
            new[rows.part].push(NewRows {
                layer: rows.layer,
                kind: rows.kind,
                first: rows.rows.start,
                bytes: of_kind,
            });
            bytes = rest;
        }
        for ((part, chunk), new) in parts.iter_mut().zip(pass.chunks).zip(new) {
            if let Err(error) = part.kv.extend(part.tokens, &new) {
                unreachable!("the rows asked for are those that came: {error}");
            }
            let mut session = chunk.session;
            session.frontier = part.kv.frontier();
            part.kv.on_device().put(*session);
        }
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation)] // rows of a pass
fn wanted(part: usize, kv: &Kv, tokens: usize) -> Vec<Wanted> {
    let of_layer = |(index, layer): (usize, usize)| {
        let kinds = kv.layout().kinds(layer).iter().enumerate();
        kinds.map(move |(of_layer, kind)| {
            let rows = kv.missing(layer, *kind, tokens);
            let bytes = (rows.end - rows.start) as usize * kv.layout().row_bytes(layer, *kind);
            Wanted {
                part,
                layer,
                index,
                of_layer,
                kind: *kind,
                rows,
                bytes,
            }
        })
    };
    kv.span().layers().enumerate().flat_map(of_layer).collect()
}
