//! The KV of some layers up to one frontier, in the bytes that are stored, sent and loaded alike.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use ds4_gguf::LayerSpan;

use crate::trial::Trial;
use crate::{KvError, KvKind, KvLayout, TokenHash};

/// A full vector grows by this part of what it holds: a session of any length wastes a sixteenth at most.
const GROWTH: usize = 16;

/// Rows `first..first + n` of one kind in one layer.
#[derive(Debug)]
pub(crate) struct Rows {
    first: u64,
    row_bytes: usize,
    /// Bytes at the front that are forgotten and not yet moved over.
    forgotten: usize,
    bytes: Vec<u8>,
}

impl Rows {
    pub(crate) const fn new(row_bytes: usize) -> Self {
        Self {
            first: 0,
            row_bytes,
            forgotten: 0,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + (self.live().len() / self.row_bytes.max(1)) as u64
    }

    pub(crate) const fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of all rows.
    pub(crate) fn live(&self) -> &[u8] {
        &self.bytes[self.forgotten..]
    }

    /// The bytes of `rows`, when all of them are here.
    pub(crate) fn get(&self, rows: Range<u64>) -> Option<&[u8]> {
        let skip = usize::try_from(rows.start.checked_sub(self.first)?).ok()?;
        let count = usize::try_from(rows.end.checked_sub(rows.start)?).ok()?;
        self.live()
            .get(skip * self.row_bytes..(skip + count) * self.row_bytes)
    }

    /// Appends whole rows; the first ones decide where the range starts.
    pub(crate) fn append(&mut self, first: u64, bytes: &[u8]) {
        self.append_pieces(first, bytes.len(), std::iter::once(bytes));
    }

    /// As [`Rows::append`], of `count` bytes in pieces that may end within a row.
    pub(crate) fn append_pieces<'a>(
        &mut self,
        first: u64,
        count: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        self.make_room(first, count);
        pieces.for_each(|piece| self.bytes.extend_from_slice(piece));
    }

    /// Room for `count` more rows, to be written by the caller; the first ones decide where the range starts.
    pub(crate) fn grow(&mut self, first: u64, count: usize) -> &mut [u8] {
        let (end, added) = (self.bytes.len(), count * self.row_bytes);
        self.make_room(first, added);
        self.bytes.resize(end + added, 0);
        &mut self.bytes[end..]
    }

    fn make_room(&mut self, first: u64, added: usize) {
        if self.live().is_empty() {
            self.first = first;
        }
        let end = self.bytes.len();
        if self.bytes.capacity() < end + added {
            self.bytes.reserve_exact(added.max(end / GROWTH));
        }
    }

    /// Takes the memory of rows up to `end` at once; untouched, it costs nothing yet.
    fn reserve(&mut self, end: u64) {
        let rows = usize::try_from(end.saturating_sub(self.range().end)).unwrap_or(0);
        self.bytes.reserve_exact(rows.saturating_mul(self.row_bytes));
    }

    /// Rows that continue these. Where none are held they are taken as they are, with the room that they have.
    pub(crate) fn join(&mut self, first: u64, rows: Self) {
        if self.live().is_empty() {
            *self = Self { first, ..rows };
        } else {
            self.append(first, rows.live());
        }
    }

    /// Forgets rows from `end` on.
    pub(crate) fn truncate(&mut self, end: u64) {
        let range = self.range();
        let keep = end.clamp(range.start, range.end) - range.start;
        #[allow(clippy::cast_possible_truncation)] // within the vector
        self.bytes
            .truncate(self.forgotten + keep as usize * self.row_bytes);
    }

    /// Forgets rows before `first`. Their bytes are moved over when they are as many as those that stay, so that a row is moved once on
    /// average, and memory that a long chunk took is given back.
    pub(crate) fn trim(&mut self, first: u64) {
        let range = self.range();
        let keep = first.clamp(range.start, range.end);
        #[allow(clippy::cast_possible_truncation)] // within the vector
        let dropped = (keep - range.start) as usize * self.row_bytes;
        self.forgotten += dropped;
        self.first = keep;
        let live = self.live().len();
        if dropped > 0 && self.forgotten >= live {
            self.bytes.drain(..self.forgotten);
            self.forgotten = 0;
            if self.bytes.capacity() > 4 * live {
                self.bytes.shrink_to(2 * live);
            }
        }
    }
}

impl Clone for Rows {
    fn clone(&self) -> Self {
        Self {
            first: self.first,
            row_bytes: self.row_bytes,
            forgotten: 0,
            bytes: self.live().to_vec(),
        }
    }
}

impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        (self.first, self.row_bytes, self.live()) == (other.first, other.row_bytes, other.live())
    }
}

impl Eq for Rows {}

/// What a device with memory of its own keeps for a KV: its copy of the rows. It belongs to the KV, is freed with it, and is no part of its value.
#[derive(Default)]
pub struct OnDevice(Option<Box<dyn Any + Send + Sync>>);

impl OnDevice {
    /// What was put here, when it is of that type.
    pub fn get<T: Any>(&mut self) -> Option<&mut T> {
        self.0.as_mut()?.downcast_mut()
    }

    /// Keeps `value` in place of what was here.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        self.0 = Some(Box::new(value));
    }

    /// Takes it out, when it is of that type.
    pub fn take<T: Any>(&mut self) -> Option<Box<T>> {
        self.0.take()?.downcast().ok()
    }
}

impl Clone for OnDevice {
    /// A copy of a KV has no copy on the device yet.
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl PartialEq for OnDevice {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for OnDevice {}

impl fmt::Debug for OnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "OnDevice"
        } else {
            "not on a device"
        })
    }
}

/// Rows of one kind that a device has computed.
#[derive(Clone, Copy, Debug)]
pub struct NewRows<'a> {
    /// The layer.
    pub layer: usize,
    /// The kind.
    pub kind: KvKind,
    /// Number of the first row.
    pub first: u64,
    /// Whole rows.
    pub bytes: &'a [u8],
}

/// KV of one run of layers at one frontier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    layout: KvLayout,
    span: LayerSpan,
    frontier: u64,
    hash: TokenHash,
    rows: BTreeMap<(usize, KvKind), Rows>,
    on_device: OnDevice,
    /// Set while the last tokens of a pass may be taken back.
    pub(crate) trial: Option<Trial>,
}

impl Kv {
    /// No tokens yet.
    #[must_use]
    pub fn new(layout: &KvLayout, span: LayerSpan) -> Self {
        let kinds = span
            .layers()
            .flat_map(|layer| layout.kinds(layer).iter().map(move |kind| (layer, *kind)));
        let rows = kinds
            .map(|(layer, kind)| ((layer, kind), Rows::new(layout.row_bytes(layer, kind))))
            .collect();
        Self {
            layout: layout.clone(),
            span,
            frontier: 0,
            hash: TokenHash::default(),
            rows,
            on_device: OnDevice::default(),
            trial: None,
        }
    }

    pub(crate) fn from_rows(
        layout: KvLayout,
        span: LayerSpan,
        frontier: u64,
        hash: TokenHash,
        rows: BTreeMap<(usize, KvKind), Rows>,
    ) -> Self {
        Self {
            layout,
            span,
            frontier,
            hash,
            rows,
            on_device: OnDevice::default(),
            trial: None,
        }
    }

    pub(crate) const fn all_rows(&self) -> &BTreeMap<(usize, KvKind), Rows> {
        &self.rows
    }

    pub(crate) const fn all_rows_mut(&mut self) -> &mut BTreeMap<(usize, KvKind), Rows> {
        &mut self.rows
    }

    /// Takes note of rows that came, or went, by another way than computing; a device's copy of them is out of date.
    pub(crate) fn stand_at(&mut self, frontier: u64, hash: TokenHash) {
        self.frontier = frontier;
        self.hash = hash;
        self.on_device = OnDevice::default();
    }

    pub(crate) fn into_rows(self) -> BTreeMap<(usize, KvKind), Rows> {
        self.rows
    }

    /// Its layers.
    #[must_use]
    pub const fn span(&self) -> LayerSpan {
        self.span
    }

    /// Row kinds and sizes.
    #[must_use]
    pub const fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Tokens computed.
    #[must_use]
    pub const fn frontier(&self) -> u64 {
        self.frontier
    }

    /// Hash of those tokens.
    #[must_use]
    pub const fn hash(&self) -> TokenHash {
        self.hash
    }

    /// Rows present of one kind; empty when the shard does not have it.
    #[must_use]
    pub fn rows(&self, layer: usize, kind: KvKind) -> Range<u64> {
        self.rows.get(&(layer, kind)).map_or(0..0, Rows::range)
    }

    /// The bytes of some rows.
    ///
    /// # Errors
    /// When the shard does not have all of them.
    pub fn read(&self, layer: usize, kind: KvKind, rows: Range<u64>) -> Result<&[u8], KvError> {
        let all = self.rows.get(&(layer, kind)).ok_or(KvError::Unknown {
            layer,
            kind,
            span: self.span,
        })?;
        let missing = || KvError::Rows {
            layer,
            kind,
            frontier: self.frontier,
            expected: rows.clone(),
            found: all.range(),
        };
        all.get(rows.clone()).ok_or_else(missing)
    }

    /// Bytes of all rows.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.values().map(|rows| rows.live().len() as u64).sum()
    }

    /// Bytes of memory taken for rows, room to grow included.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.rows.values().map(|rows| rows.bytes.capacity() as u64).sum()
    }

    /// Takes room for a session of `tokens` at once, so that its rows need not move when they become more. Only what grows with the session:
    /// windows and states are small.
    pub fn reserve(&mut self, tokens: u64) {
        for ((layer, kind), rows) in &mut self.rows {
            if kind.append_only() {
                rows.reserve(self.layout.expected_rows(*layer, *kind, tokens).end);
            }
        }
    }

    /// The room of kinds of which nothing is held yet; they have none then.
    pub(crate) fn take_room(&mut self) -> impl Iterator<Item = ((usize, KvKind), Rows)> + '_ {
        let growing = self.rows.iter_mut().filter(|((_, kind), _)| kind.append_only());
        let unused = growing.filter(|(_, rows)| rows.range() == (0..0));
        unused.map(|(place, rows)| {
            let none = Rows::new(rows.row_bytes());
            (*place, std::mem::replace(rows, none))
        })
    }

    /// The rows of one kind, to be extended while other kinds are read; [`Kv::put_rows`] gives them back.
    pub(crate) fn take_rows(&mut self, layer: usize, kind: KvKind) -> Rows {
        let empty = Rows::new(self.layout.row_bytes(layer, kind));
        match self.rows.get_mut(&(layer, kind)) {
            Some(rows) => std::mem::replace(rows, empty),
            None => unreachable!("layer {layer} of {} keeps {kind} rows", self.span),
        }
    }

    pub(crate) fn put_rows(&mut self, layer: usize, kind: KvKind, rows: Rows) {
        self.rows.insert((layer, kind), rows);
    }

    /// Forgets the rows of `layer` that no token from `frontier` on can see, or from where a trial goes back to.
    pub(crate) fn trim(&mut self, layer: usize, frontier: u64) {
        let frontier = self.trial.map_or(frontier, |trial| frontier.min(trial.frontier));
        for kind in self.layout.kinds(layer) {
            let first = self.layout.expected_rows(layer, *kind, frontier).start;
            if let Some(rows) = self.rows.get_mut(&(layer, *kind)) {
                rows.trim(first);
            }
        }
    }

    /// What a device keeps for this KV.
    pub const fn on_device(&mut self) -> &mut OnDevice {
        &mut self.on_device
    }

    /// Takes over what a device has computed for `tokens`: for every layer and kind the rows that came to be and are still needed.
    ///
    /// # Errors
    /// When a kind's rows are not those that lead up to the new frontier; nothing was changed then.
    pub fn extend(&mut self, tokens: &[u32], new: &[NewRows<'_>]) -> Result<(), KvError> {
        let frontier = self.frontier + tokens.len() as u64;
        for layer in self.span.layers() {
            for kind in self.layout.kinds(layer) {
                self.check_new(layer, *kind, frontier, new)?;
            }
        }
        for NewRows {
            layer,
            kind,
            first,
            bytes,
        } in new
        {
            let needed = self.layout.expected_rows(*layer, *kind, frontier).start;
            if let Some(rows) = self.rows.get_mut(&(*layer, *kind)) {
                rows.trim(needed);
                rows.append(*first, bytes);
            }
        }
        self.advance(tokens);
        Ok(())
    }

    /// The rows that must come for `tokens` more tokens: those that are not here and that a later token can see.
    #[must_use]
    pub fn missing(&self, layer: usize, kind: KvKind, tokens: usize) -> Range<u64> {
        let expected = self
            .layout
            .expected_rows(layer, kind, self.frontier + tokens as u64);
        expected.start.max(self.rows(layer, kind).end)..expected.end
    }

    fn check_new(
        &self,
        layer: usize,
        kind: KvKind,
        frontier: u64,
        new: &[NewRows<'_>],
    ) -> Result<(), KvError> {
        #[allow(clippy::cast_possible_truncation)] // tokens of one call
        let expected = self.missing(layer, kind, (frontier - self.frontier) as usize);
        let row = self.layout.row_bytes(layer, kind);
        let found = new.iter().find(|rows| rows.layer == layer && rows.kind == kind);
        let (first, bytes) = found.map_or((0, 0), |rows| (rows.first, rows.bytes.len()));
        if !bytes.is_multiple_of(row) {
            return Err(KvError::Size {
                layer,
                kind,
                row,
                found: bytes,
            });
        }
        let found = first..first + (bytes / row) as u64;
        if found == expected {
            return Ok(());
        }
        Err(KvError::Rows {
            layer,
            kind,
            frontier,
            expected,
            found,
        })
    }

    /// Takes note of computed tokens, whose layers have been trimmed already.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.frontier += tokens.len() as u64;
        self.hash.extend(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_any_length_wastes_a_tenth_at_most() {
        // The rows of one ratio-4 layer up to a million tokens, as prefill appends them and as decode does.
        let (size, rows) = (583, 1 << 18);
        for step in [1, 128] {
            let mut all = Rows::new(size);
            for first in (0..rows).step_by(step) {
                all.grow(first, step).fill(1);
                let (live, taken) = (all.live().len(), all.bytes.capacity());
                assert!(
                    live < 1 << 16 || taken * 10 <= live * 11,
                    "{taken} bytes for {live}"
                );
            }
            assert_eq!(all.range(), 0..rows);
        }
    }

    #[test]
    fn a_window_moves_over_its_memory_and_gives_back_what_a_chunk_took() {
        let mut rows = Rows::new(2);
        let write = |rows: &mut Rows, first: u64, count: usize| {
            for (row, out) in (first..).zip(rows.grow(first, count).chunks_exact_mut(2)) {
                out.copy_from_slice(&(row as u16).to_le_bytes());
            }
        };
        write(&mut rows, 0, 10_000);
        rows.trim(9_900);
        assert!(rows.bytes.capacity() <= 400, "{}", rows.bytes.capacity());
        for row in 10_000..12_000u64 {
            write(&mut rows, row, 1);
            rows.trim(row - 99);
            assert_eq!(rows.range(), row - 99..row + 1);
            let expected: Vec<u8> = (row - 99..=row)
                .flat_map(|row| (row as u16).to_le_bytes())
                .collect();
            assert_eq!(rows.get(row - 99..row + 1), Some(expected.as_slice()));
            assert!(rows.bytes.capacity() <= 1000, "{}", rows.bytes.capacity());
        }
    }
}
