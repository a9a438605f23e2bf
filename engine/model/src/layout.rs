//! What KV a layer keeps, and how many bytes a row takes.

use std::fmt;
use std::ops::Range;

use ds4_gguf::ModelConfig;
use ds4_kernels::codec::{check_indexer, check_kv, indexer_row_bytes, kv_row_bytes};
use ds4_kernels::ops::compressor::live_from;

use crate::{KvError, Numerics};

/// The five kinds of rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KvKind {
    /// One row per token, the last `window - 1` of them: those that a later token can see.
    Window,
    /// One row per whole group of `ratio` tokens.
    Compressed,
    /// The indexer's row of the same group (ratio 4).
    Indexer,
    /// Compressor input of the tokens whose group is still open.
    CompressorState,
    /// The same for the indexer's compressor.
    IndexerState,
}

impl KvKind {
    /// Every kind, in the order in which they are listed and sent.
    pub const ALL: [Self; 5] = [
        Self::Window,
        Self::Compressed,
        Self::Indexer,
        Self::CompressorState,
        Self::IndexerState,
    ];

    /// Whether rows are only ever appended, so that they can be sent while prefill still runs.
    #[must_use]
    pub const fn append_only(self) -> bool {
        matches!(self, Self::Compressed | Self::Indexer)
    }

    /// Whether rows are kept per group rather than per token.
    const fn per_group(self) -> bool {
        self.append_only()
    }
}

impl fmt::Display for KvKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Window => "window",
            Self::Compressed => "compressed",
            Self::Indexer => "indexer",
            Self::CompressorState => "compressor state",
            Self::IndexerState => "indexer state",
        })
    }
}

/// Row kinds and sizes of every layer of one model in one numerics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvLayout {
    numerics: Numerics,
    window: u64,
    head_dim: usize,
    n_rot: usize,
    indexer_dim: usize,
    ratios: Vec<u32>,
}

impl KvLayout {
    /// The layout of a model.
    #[must_use]
    pub fn new(config: &ModelConfig, numerics: Numerics) -> Self {
        Self {
            numerics,
            window: config.window as u64,
            head_dim: config.head_dim,
            n_rot: config.n_rot,
            indexer_dim: config.indexer.dim,
            ratios: config.ratios.clone(),
        }
    }

    /// Two nodes exchange KV only when these texts are equal.
    #[must_use]
    pub fn id(&self) -> String {
        let Self {
            numerics,
            window,
            head_dim,
            n_rot,
            indexer_dim,
            ratios,
        } = self;
        let ratios: Vec<_> = ratios.iter().map(ToString::to_string).collect();
        format!(
            "kv1;{numerics};window={window};row={head_dim}/{n_rot};indexer={indexer_dim};ratios={}",
            ratios.join(",")
        )
    }

    /// Layers of the model.
    #[must_use]
    pub fn n_layer(&self) -> usize {
        self.ratios.len()
    }

    /// The numerics whose rows these are.
    #[must_use]
    pub const fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Kinds that `layer` keeps.
    #[must_use]
    pub fn kinds(&self, layer: usize) -> &'static [KvKind] {
        use KvKind::{Compressed, CompressorState, Indexer, IndexerState, Window};
        match self.ratios.get(layer) {
            None => &[],
            Some(0) => &[Window],
            Some(4) => &[Window, Compressed, Indexer, CompressorState, IndexerState],
            Some(_) => &[Window, Compressed, CompressorState],
        }
    }

    /// Bytes of one row; 0 when the layer does not have the kind.
    #[must_use]
    pub fn row_bytes(&self, layer: usize, kind: KvKind) -> usize {
        if !self.kinds(layer).contains(&kind) {
            return 0;
        }
        let overlap = if self.ratios[layer] == 4 { 2 } else { 1 };
        match (kind, self.numerics) {
            (KvKind::Window | KvKind::Compressed, Numerics::Canonical) => {
                kv_row_bytes(self.head_dim, self.n_rot)
            }
            (KvKind::Window | KvKind::Compressed, Numerics::Reference) => 4 * self.head_dim,
            (KvKind::Indexer, Numerics::Canonical) => indexer_row_bytes(self.indexer_dim),
            (KvKind::Indexer, Numerics::Reference) => 4 * self.indexer_dim,
            // Values, then gate logits, in f32.
            (KvKind::CompressorState, _) => 2 * 4 * overlap * self.head_dim,
            (KvKind::IndexerState, _) => 2 * 4 * overlap * self.indexer_dim,
        }
    }

    /// The rows that a session of `frontier` tokens holds: no more, no fewer.
    #[must_use]
    pub fn expected_rows(&self, layer: usize, kind: KvKind, frontier: u64) -> Range<u64> {
        if !self.kinds(layer).contains(&kind) {
            return 0..0;
        }
        let ratio = u64::from(self.ratios[layer]);
        match kind {
            KvKind::Window => frontier.saturating_sub(self.window - 1)..frontier,
            kind if kind.per_group() => 0..frontier / ratio,
            _ => live_from(ratio, frontier)..frontier,
        }
    }

    /// The rows that a session of `frontier` tokens holds and the same session at `held` tokens did not.
    #[must_use]
    pub fn missing_rows(&self, layer: usize, kind: KvKind, held: u64, frontier: u64) -> Range<u64> {
        let (have, want) = (
            self.expected_rows(layer, kind, held),
            self.expected_rows(layer, kind, frontier),
        );
        want.start.max(have.end).min(want.end)..want.end
    }

    /// Bytes of all rows of some layers at `frontier` tokens.
    #[must_use]
    pub fn bytes(&self, layers: impl Iterator<Item = usize>, frontier: u64) -> u64 {
        let of_kind = |layer: usize, kind: KvKind| {
            let rows = self.expected_rows(layer, kind, frontier);
            (rows.end - rows.start) * self.row_bytes(layer, kind) as u64
        };
        layers
            .map(|layer| {
                self.kinds(layer)
                    .iter()
                    .map(|kind| of_kind(layer, *kind))
                    .sum::<u64>()
            })
            .sum()
    }

    /// Bytes that each further token adds in the long run: window and states do not grow.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // a few kilobytes
    pub fn bytes_per_token(&self, layers: impl Iterator<Item = usize>) -> f64 {
        let rows = |layer: usize, kind: KvKind| {
            self.row_bytes(layer, kind) as f64 / f64::from(self.ratios[layer].max(1))
        };
        let growing = |layer: usize| {
            self.kinds(layer)
                .iter()
                .filter(|kind| kind.append_only())
                .map(move |kind| (layer, *kind))
        };
        layers
            .flat_map(growing)
            .map(|(layer, kind)| rows(layer, kind))
            .sum()
    }

    /// Refuses bytes that the model cannot have produced.
    pub(crate) fn check_row(
        &self,
        layer: usize,
        kind: KvKind,
        row: u64,
        bytes: &[u8],
    ) -> Result<(), KvError> {
        let refused = |source| KvError::Row {
            layer,
            kind,
            row,
            source,
        };
        match (kind, self.numerics) {
            (KvKind::Window | KvKind::Compressed, Numerics::Canonical) => {
                check_kv(bytes, self.head_dim, self.n_rot).map_err(refused)
            }
            (KvKind::Indexer, Numerics::Canonical) => check_indexer(bytes, self.indexer_dim).map_err(refused),
            _ => match floats(bytes).find(|x| !x.is_finite()) {
                Some(found) => Err(KvError::State {
                    layer,
                    kind,
                    row,
                    found: found.to_string(),
                }),
                None => Ok(()),
            },
        }
    }
}

/// Little-endian `f32` values.
pub(crate) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
