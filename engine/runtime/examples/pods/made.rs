//! A model that costs nothing: the rows of a real one in number and size, made instead of computed, so that only their way is measured.

use std::sync::Arc;

use ds4_model::{Hidden, KvKind, ModelError, ModelSlice, NewRows, Part, SliceInfo};

/// A byte that is a number as a code, as a scale, in a half and in a float.
pub const NUMBER: u8 = 0x6c;
/// Activations so narrow that they do not count beside the rows.
const NARROW: usize = 4;

pub struct Made(SliceInfo);

impl Made {
    /// As `real`, with nothing computed.
    pub fn like(real: &dyn ModelSlice) -> Arc<dyn ModelSlice> {
        let mut info = real.info().clone();
        info.config.n_embd = NARROW;
        Arc::new(Self(info))
    }
}

impl ModelSlice for Made {
    fn info(&self) -> &SliceInfo {
        &self.0
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        let width = self.0.config.hidden_width();
        Hidden::from_vec(width, vec![0.0; tokens.len() * width]).ok_or_else(|| self.0.lacks("a width"))
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], _: &mut Hidden) -> Result<(), ModelError> {
        for part in parts {
            let new: Vec<(usize, KvKind, u64, usize)> = part
                .kv
                .span()
                .layers()
                .flat_map(|layer| {
                    part.kv
                        .layout()
                        .kinds(layer)
                        .iter()
                        .map(move |kind| (layer, *kind))
                })
                .map(|(layer, kind)| {
                    let rows = part.kv.missing(layer, kind, part.tokens.len());
                    let bytes = (rows.end - rows.start) as usize * part.kv.layout().row_bytes(layer, kind);
                    (layer, kind, rows.start, bytes)
                })
                .collect();
            let most = new.iter().map(|(.., bytes)| *bytes).max().unwrap_or(0);
            let bytes = vec![NUMBER; most];
            let rows: Vec<_> = new
                .iter()
                .map(|(layer, kind, first, count)| NewRows {
                    layer: *layer,
                    kind: *kind,
                    first: *first,
                    bytes: &bytes[..*count],
                })
                .collect();
            part.kv
                .extend(part.tokens, &rows)
                .map_err(|error| self.0.lacks(error))?;
        }
        Ok(())
    }

    fn logits_batch(&self, _: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        Ok(vec![0.0; tokens.len() * self.0.config.n_vocab])
    }
}
