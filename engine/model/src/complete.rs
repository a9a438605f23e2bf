//! The KV of all layers: the only thing that can be decoded.

use ds4_gguf::LayerSpan;

use crate::{Kv, KvError, KvLayout};

/// KV of every layer at one frontier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteKv(Kv);

impl CompleteKv {
    /// A session without tokens.
    #[must_use]
    pub fn empty(layout: &KvLayout) -> Self {
        Self(Kv::new(layout, LayerSpan::full(layout.n_layer())))
    }

    /// Joins shards that together hold every layer once, at one frontier of one timeline.
    ///
    /// # Errors
    /// Names what differs or which layer is missing.
    pub fn assemble(layout: &KvLayout, mut parts: Vec<Kv>) -> Result<Self, KvError> {
        parts.sort_by_key(|part| part.span().first);
        let Some(first) = parts.first() else {
            return Err(KvError::Incomplete {
                expected: 0,
                found: "no shard".into(),
            });
        };
        let (frontier, hash) = (first.frontier(), first.hash());
        let mut next = 0;
        let mut rows = std::collections::BTreeMap::new();
        for part in parts {
            let span = part.span();
            let differs = |field, expected: &dyn ToString, found: &dyn ToString| {
                Err(KvError::Mismatch {
                    field,
                    expected: expected.to_string(),
                    found: found.to_string(),
                    span,
                })
            };
            if part.layout() != layout {
                return differs("KV layout", &layout.id(), &part.layout().id());
            }
            if part.frontier() != frontier {
                return differs("frontier", &frontier, &part.frontier());
            }
            if part.hash() != hash {
                return differs("token hash", &hash, &part.hash());
            }
            if span.first != next {
                return Err(KvError::Incomplete {
                    expected: next,
                    found: format!("layers {span}"),
                });
            }
            next = span.last + 1;
            rows.extend(part.into_rows());
        }
        if next != layout.n_layer() {
            return Err(KvError::Incomplete {
                expected: next,
                found: "no further shard".into(),
            });
        }
        Ok(Self(Kv::from_rows(
            layout.clone(),
            LayerSpan::full(next),
            frontier,
            hash,
            rows,
        )))
    }

    /// Takes the session apart into shards of these layers; [`CompleteKv::assemble`] puts them together again. Layers in no span are lost.
    #[must_use]
    pub fn split(self, spans: &[LayerSpan]) -> Vec<Kv> {
        let (layout, frontier, hash) = (self.0.layout().clone(), self.0.frontier(), self.0.hash());
        let mut rows = self.0.into_rows();
        let mut shard = |span: LayerSpan| {
            let (own, others) = std::mem::take(&mut rows)
                .into_iter()
                .partition(|((layer, _), _)| (span.first..=span.last).contains(layer));
            rows = others;
            Kv::from_rows(layout.clone(), span, frontier, hash, own)
        };
        spans.iter().map(|span| shard(*span)).collect()
    }

    /// The rows.
    #[must_use]
    pub const fn kv(&self) -> &Kv {
        &self.0
    }

    /// The rows, for the layers to extend.
    pub const fn kv_mut(&mut self) -> &mut Kv {
        &mut self.0
    }
}
