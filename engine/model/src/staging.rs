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
    rows: BTreeMap<(usize, KvKind), Rows>,
}

impl KvStaging {
    /// An empty area for the layers of `span`; a session of more than `max_tokens` is refused.
    #[must_use]
    pub fn new(layout: &KvLayout, span: LayerSpan, max_tokens: u64) -> Self {
        let rows = Kv::new(layout, span).into_rows();
        Self {
            layout: layout.clone(),
            span,
            max_tokens,
            rows,
        }
    }

    /// Appends whole rows of one kind that start at `first`; returns how many they are.
    ///
    /// # Errors
    /// When the layer or kind is not of this shard, rows are missing or come twice, the bytes are not whole rows, or a row is one that
    /// the model cannot have produced.
    pub fn write(&mut self, layer: usize, kind: KvKind, first: u64, bytes: &[u8]) -> Result<u64, KvError> {
        let span = self.span;
        let rows = self
            .rows
            .get_mut(&(layer, kind))
            .ok_or(KvError::Unknown { layer, kind, span })?;
        let row = self.layout.row_bytes(layer, kind);
        if !bytes.len().is_multiple_of(row) {
            return Err(KvError::Size {
                layer,
                kind,
                row,
                found: bytes.len(),
            });
        }
        let present = rows.range();
        let started = !present.is_empty() || kind.append_only();
        if started && first != present.end {
            return Err(KvError::Order {
                layer,
                kind,
                expected: present.end,
                found: first,
            });
        }
        let found = first.saturating_add((bytes.len() / row) as u64);
        if found > self.max_tokens {
            return Err(KvError::Limit {
                layer,
                kind,
                most: self.max_tokens,
                found,
            });
        }
        for (row, bytes) in (first..).zip(bytes.chunks_exact(row)) {
            self.layout.check_row(layer, kind, row, bytes)?;
        }
        rows.append(first, bytes);
        Ok(found - first)
    }

    /// Makes the rows valid at `frontier`, all at once.
    ///
    /// # Errors
    /// When the rows of any layer and kind are not exactly those that the frontier implies.
    pub fn commit(mut self, frontier: u64, hash: TokenHash) -> Result<Kv, KvError> {
        for ((layer, kind), rows) in &mut self.rows {
            let (layer, kind) = (*layer, *kind);
            let (expected, found) = (self.layout.expected_rows(layer, kind, frontier), rows.range());
            if expected.is_empty() && found.is_empty() {
                // Where no row is held, the range still says which one comes next.
                rows.append(expected.start, &[]);
            } else if expected != found {
                return Err(KvError::Rows {
                    layer,
                    kind,
                    frontier,
                    expected,
                    found,
                });
            }
        }
        Ok(Kv::from_rows(self.layout, self.span, frontier, hash, self.rows))
    }
}
