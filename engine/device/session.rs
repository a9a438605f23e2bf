//! A session's KV on the device, in the bytes that the host's [`Kv`] has.

use std::ops::Range;

use crate::kernels::{Buffer, Device, DeviceError, Slice};
use ds4_gguf::ModelConfig;
use ds4_model::{Kv, KvKind};

/// Rows that are kept for a while: that of number `n` lies in slot `n % slots`, or at `n` where no row is ever forgotten.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) kind: KvKind,
    bytes: Buffer<u8>,
    pub(crate) row: usize,
}

/// Rows of every kind in one layer.
pub(crate) type LayerRows = Vec<Rows>;

/// All rows of one session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) frontier: u64,
    pub(crate) layers: Vec<LayerRows>,
}

/// Append-only rows get room for this many more at a time, and a quarter of what is there.
const GROWTH: usize = 256;

/// Slots of a ring, or room at first.
fn slots(config: &ModelConfig, layer: usize, kind: KvKind) -> usize {
    match kind {
        KvKind::Window => config.window,
        KvKind::Compressed | KvKind::Indexer => GROWTH,
        // The open group, and where groups overlap the one before.
        KvKind::CompressorState | KvKind::IndexerState => 2 * config.ratios[layer] as usize,
    }
}

impl Session {
    /// What the device keeps for `kv`, taken out of it; made anew from the host's rows when there is nothing, or something older. It has room for
    /// `tokens` more tokens.
    pub(crate) fn of(
        device: &Device,
        config: &ModelConfig,
        kv: &mut Kv,
        tokens: usize,
    ) -> Result<Box<Self>, DeviceError> {
        let frontier = kv.frontier();
        let mut session = match kv.on_device().take::<Self>() {
            Some(session) if session.frontier == frontier => session,
            _ => Box::new(Self::upload(device, config, kv)?),
        };
        for (number, layer) in kv.span().layers().zip(&mut session.layers) {
            // A layer without compression has no rows that it adds to.
            let groups = (frontier + tokens as u64) / u64::from(config.ratios[number].max(1));
            for rows in layer {
                rows.reserve(device, groups)?;
            }
        }
        Ok(session)
    }

    fn upload(device: &Device, config: &ModelConfig, kv: &Kv) -> Result<Self, DeviceError> {
        let span = kv.span();
        let layer = |layer: usize| {
            let kinds = kv.layout().kinds(layer).iter();
            kinds
                .map(|kind| Rows::upload(device, config, kv, layer, *kind))
                .collect::<Result<LayerRows, _>>()
        };
        let layers = span.layers().map(layer).collect::<Result<_, _>>()?;
        Ok(Self {
            frontier: kv.frontier(),
            layers,
        })
    }
}

impl Rows {
    fn upload(
        device: &Device,
        config: &ModelConfig,
        kv: &Kv,
        layer: usize,
        kind: KvKind,
    ) -> Result<Self, DeviceError> {
        let (row, range) = (kv.layout().row_bytes(layer, kind), kv.rows(layer, kind));
        let mut rows = Self {
            kind,
            bytes: device.allocate("KV", slots(config, layer, kind) * row)?,
            row,
        };
        rows.reserve(device, range.end)?;
        let bytes = kv
            .read(layer, kind, range.clone())
            .unwrap_or_else(|error| unreachable!("rows that are present: {error}"));
        let mut from = 0;
        for slots in rows.segments(range) {
            let bytes = &bytes[from..from + slots.len()];
            device.write(bytes, rows.bytes.all().range(slots))?;
            from += bytes.len();
        }
        Ok(rows)
    }

    /// Makes room for rows before `end`, where none is ever forgotten.
    fn reserve(&mut self, device: &Device, end: u64) -> Result<(), DeviceError> {
        let needed = usize::try_from(end)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.row);
        if !self.kind.append_only() || needed <= self.bytes.len() {
            return Ok(());
        }
        let room = needed + (self.bytes.len() / 4).max(GROWTH * self.row);
        let larger: Buffer<u8> = device.allocate("KV", room / self.row * self.row)?;
        device.copy(self.bytes.all(), larger.all().range(0..self.bytes.len()))?;
        // The old memory is freed behind the copy: freeing waits for the device.
        self.bytes = larger;
        Ok(())
    }

    pub(crate) const fn all(&self) -> Slice<'_, u8> {
        self.bytes.all()
    }

    /// Byte ranges of rows, in order: one, or two where the ring ends between them.
    pub(crate) fn segments(&self, rows: Range<u64>) -> Vec<Range<usize>> {
        segments(rows, self.bytes.len() / self.row)
            .into_iter()
            .map(|slots| slots.start * self.row..slots.end * self.row)
            .collect()
    }
}

/// Slots of rows in a ring, in order.
#[allow(clippy::cast_possible_truncation)] // within the ring
fn segments(rows: Range<u64>, slots: usize) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut next = rows.start;
    while next < rows.end {
        let slot = (next % slots as u64) as usize;
        let count = (slots - slot).min((rows.end - next) as usize);
        found.push(slot..slot + count);
        next += count as u64;
    }
    found
}

/// Copies rows from one ring to another with rows of the same size.
pub(crate) fn copy(
    device: &Device,
    rows: Range<u64>,
    row: usize,
    from: Slice<'_, u8>,
    to: Slice<'_, u8>,
) -> Result<(), DeviceError> {
    let mut next = rows.start;
    for from_slots in segments(rows, from.len() / row) {
        let mut start = from_slots.start;
        for to_slots in segments(next..next + from_slots.len() as u64, to.len() / row) {
            let source = start * row..(start + to_slots.len()) * row;
            device.copy(
                from.range(source),
                to.range(to_slots.start * row..to_slots.end * row),
            )?;
            start += to_slots.len();
        }
        next += from_slots.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn rows_of_a_ring_come_in_order_and_break_at_its_end() {
        assert_eq!(segments(5..5, 4), []);
        assert_eq!(segments(3..5, 4), [3..4, 0..1]);
        assert_eq!(segments(6..9, 4), [2..4, 0..1]);
        assert_eq!(segments(0..6, 4), [0..4, 0..2]);
    }
}
