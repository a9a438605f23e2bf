//! Where received rows wait: nothing of them can be decoded before all of them are there.

use std::collections::BTreeMap;

use ds4_gguf::LayerSpan;

use crate::kv::Rows;
use crate::{Kv, KvError, KvKind, KvLayout, TokenHash};

/// The rows received so far of one shard.
#[derive(Debug)]
pub struct KvStaging {
    layout: KvLayout,
    span: LayerSpan,
    max_tokens: u64,
    held: u64,
    rows: BTreeMap<(usize, KvKind), Rows>,
}

impl KvStaging {
    /// An empty area for the layers of `span`; a session of more than `max_tokens` is refused.
    #[must_use]
    pub fn new(layout: &KvLayout, span: LayerSpan, max_tokens: u64) -> Self {
        Self::onto(&mut Kv::new(layout, span), max_tokens)
    }

    /// As [`KvStaging::new`], for the rows that `base` lacks; where it has none they take its room.
    #[must_use]
    pub fn onto(base: &mut Kv, max_tokens: u64) -> Self {
        let mut rows = Kv::new(base.layout(), base.span()).into_rows();
        rows.extend(base.take_room());
        Self {
            layout: base.layout().clone(),
            span: base.span(),
            max_tokens,
            held: base.frontier(),
            rows,
        }
    }

    /// Appends whole rows of one kind that start at `first`; returns how many they are.
    ///
    /// # Errors
    /// When the layer or kind is not of this shard, rows are missing or come twice, the bytes are not whole rows, or a row is one that
    /// the model cannot have produced.
    pub fn write(&mut self, layer: usize, kind: KvKind, first: u64, bytes: &[u8]) -> Result<u64, KvError> {
        self.write_pieces(layer, kind, first, std::iter::once(bytes))
    }

    /// As [`KvStaging::write`], of rows in pieces that may end within one. They are checked where they are put, which a core's cache still holds.
    ///
    /// # Errors
    /// As [`KvStaging::write`]; after one nothing of these rows is here.
    pub fn write_pieces<'a>(
        &mut self,
        layer: usize,
        kind: KvKind,
        first: u64,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<u64, KvError> {
        let bytes: usize = pieces.clone().map(<[u8]>::len).sum();
        let span = self.span;
        let rows = self
            .rows
            .get_mut(&(layer, kind))
            .ok_or(KvError::Unknown { layer, kind, span })?;
        let row = self.layout.row_bytes(layer, kind);
        if !bytes.is_multiple_of(row) {
            return Err(KvError::Size {
                layer,
                kind,
                row,
                found: bytes,
            });
        }
        let present = rows.range();
        let started = !present.is_empty() || kind.append_only();
        let next = if present.is_empty() {
            self.layout.expected_rows(layer, kind, self.held).end
        } else {
            present.end
        };
        if started && first != next {
            return Err(KvError::Order {
                layer,
                kind,
                expected: next,
                found: first,
            });
        }
        let found = first.saturating_add((bytes / row) as u64);
        if found > self.max_tokens {
            return Err(KvError::Limit {
                layer,
                kind,
                most: self.max_tokens,
                found,
            });
        }
        rows.append_pieces(first, bytes, pieces);
        let added = rows.live().len() - bytes;
        let mut new = (first..).zip(rows.live()[added..].chunks_exact(row));
        let checked = new.try_for_each(|(row, bytes)| self.layout.check_row(layer, kind, row, bytes));
        if checked.is_err() {
            rows.truncate(first);
        }
        checked.map(|()| found - first)
    }

    /// Makes the rows valid at `frontier`, all at once.
    ///
    /// # Errors
    /// When the rows of any layer and kind are not exactly those that the frontier implies.
    pub fn commit(self, frontier: u64, hash: TokenHash) -> Result<Kv, KvError> {
        let mut kv = Kv::new(&self.layout, self.span);
        self.commit_onto(&mut kv, frontier, hash)?;
        Ok(kv)
    }

    /// Extends `base` by the rows, all at once; after an error it is as it was.
    ///
    /// # Errors
    /// When `base` is not what the rows continue, or they are not exactly those that lie between its frontier and `frontier`.
    pub fn commit_onto(self, base: &mut Kv, frontier: u64, hash: TokenHash) -> Result<(), KvError> {
        self.check(base, frontier)?;
        for ((layer, kind), rows) in self.rows {
            let expected = self.layout.expected_rows(layer, kind, frontier);
            if let Some(all) = base.all_rows_mut().get_mut(&(layer, kind)) {
                if expected.start >= all.range().end {
                    all.trim(u64::MAX);
                }
                // Where no row is held, the range still says which one comes next.
                all.join(expected.start.max(rows.range().start), rows);
                all.trim(expected.start);
            }
        }
        base.stand_at(frontier, hash);
        Ok(())
    }

    fn check(&self, base: &Kv, frontier: u64) -> Result<(), KvError> {
        if base.frontier() != self.held || base.span() != self.span {
            return Err(KvError::Mismatch {
                field: "frontier",
                expected: format!("{} of layers {}", self.held, self.span),
                found: base.frontier().to_string(),
                span: base.span(),
            });
        }
        for ((layer, kind), rows) in &self.rows {
            let (layer, kind) = (*layer, *kind);
            let expected = self.layout.missing_rows(layer, kind, self.held, frontier);
            let found = rows.range();
            if expected != found && !(expected.is_empty() && found.is_empty()) {
                return Err(KvError::Rows {
                    layer,
                    kind,
                    frontier,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}
