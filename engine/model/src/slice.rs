//! What the engine sees of a loaded run of layers.

use ds4_gguf::{Fingerprint, LayerSpan, ModelConfig};

use crate::{Hidden, Kv, KvLayout, ModelError, Numerics};

/// What a slice is, for handshakes and status.
#[derive(Clone, Debug)]
pub struct SliceInfo {
    /// Shapes of the whole model.
    pub config: ModelConfig,
    /// Layers loaded.
    pub span: LayerSpan,
    /// Arithmetic in use.
    pub numerics: Numerics,
    /// Identity of the file.
    pub fingerprint: Fingerprint,
    /// Name of the back end.
    pub backend: String,
    /// Rows of its KV.
    pub layout: KvLayout,
    /// Bytes of weights mapped.
    pub weight_bytes: u64,
}

/// A loaded run of layers. All calls compute and block; call them off the event loop.
pub trait ModelSlice: Send + Sync {
    /// What is loaded.
    fn info(&self) -> &SliceInfo;

    /// The residual streams of some tokens, before layer 0.
    ///
    /// # Errors
    /// When the slice does not own layer 0 or an id is outside the vocabulary.
    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError>;

    /// Runs the layers of `kv` over tokens at its frontier; changes `hidden` in place and extends `kv`.
    ///
    /// # Errors
    /// When the slice does not own those layers or `hidden` has another shape. Nothing was changed then.
    fn forward(&self, tokens: &[u32], hidden: &mut Hidden, kv: &mut Kv) -> Result<(), ModelError>;

    /// The logits of one token, `n_vocab` of them.
    ///
    /// # Errors
    /// When the slice does not own the head.
    fn logits(&self, hidden: &Hidden, token: usize) -> Result<Vec<f32>, ModelError>;
}
