//! Rows that a pass computed, on their way to the host.

use std::ops::Range;

use ds4_kernels_cuda::{CudaError, Readback, Segments, Staging};
use ds4_model::Part;

use crate::missing::{Missing, deliver, missing};
use crate::pass::Pass;

/// The rows that every part's KV gets. Those of a layer leave as soon as it is computed, beside the computing of the next; the host waits for them when it has
/// the streams.
pub(crate) struct Outgoing<'a> {
    /// In the order in which they leave: by layer, then by part.
    wanted: Vec<Missing>,
    readback: Readback<'a>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(
        pass: &Pass<'a>,
        parts: &[Part<'_>],
        staging: &'a mut Staging,
    ) -> Result<Self, CudaError> {
        let mut wanted = missing(parts);
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
        deliver(pass.chunks, parts, &self.wanted, self.readback.bytes()?);
        Ok(())
    }
}
