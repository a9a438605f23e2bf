//! The KV of some layers up to one frontier, in the bytes that are stored, sent and loaded alike.

use std::collections::BTreeMap;
use std::ops::Range;

use ds4_gguf::LayerSpan;

use crate::{KvError, KvKind, KvLayout, TokenHash};

/// Rows `first..first + n` of one kind in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    first: u64,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Rows {
    pub(crate) const fn new(row_bytes: usize) -> Self {
        Self {
            first: 0,
            row_bytes,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + (self.bytes.len() / self.row_bytes.max(1)) as u64
    }

    /// The bytes of `rows`, when all of them are here.
    pub(crate) fn get(&self, rows: Range<u64>) -> Option<&[u8]> {
        let skip = usize::try_from(rows.start.checked_sub(self.first)?).ok()?;
        let count = usize::try_from(rows.end.checked_sub(rows.start)?).ok()?;
        self.bytes
            .get(skip * self.row_bytes..(skip + count) * self.row_bytes)
    }

    /// Appends whole rows; the first ones decide where the range starts.
    pub(crate) fn append(&mut self, first: u64, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.first = first;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Room for more rows, handed out as the vector that encoders append to.
    pub(crate) fn tail(&mut self, first: u64) -> &mut Vec<u8> {
        if self.bytes.is_empty() {
            self.first = first;
        }
        &mut self.bytes
    }

    /// Forgets rows before `first`.
    pub(crate) fn trim(&mut self, first: u64) {
        let range = self.range();
        let keep = first.clamp(range.start, range.end);
        #[allow(clippy::cast_possible_truncation)] // within the vector
        self.bytes.drain(..(keep - range.start) as usize * self.row_bytes);
        self.first = keep;
    }
}

/// KV of one run of layers at one frontier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    layout: KvLayout,
    span: LayerSpan,
    frontier: u64,
    hash: TokenHash,
    rows: BTreeMap<(usize, KvKind), Rows>,
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
        }
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
        self.rows.values().map(|rows| rows.bytes.len() as u64).sum()
    }

    pub(crate) fn rows_mut(&mut self, layer: usize, kind: KvKind) -> Option<&mut Rows> {
        self.rows.get_mut(&(layer, kind))
    }

    /// Takes note of computed tokens and forgets the rows that no later token can see.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.frontier += tokens.len() as u64;
        self.hash.extend(tokens);
        for ((layer, kind), rows) in &mut self.rows {
            rows.trim(self.layout.expected_rows(*layer, *kind, self.frontier).start);
        }
    }
}
