//! What the engine sees of a loaded run of layers.

use ds4_gguf::{Fingerprint, LayerSpan, ModelConfig};

use crate::draft::Drafter;
use crate::{Hidden, Kv, KvLayout, ModelError, Numerics, Part};

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

impl SliceInfo {
    /// Whether the slice owns the parts' layers, the same ones for all of them, and knows their tokens.
    ///
    /// # Errors
    /// Names the layers, or the first id that the vocabulary lacks.
    pub fn check_parts(&self, parts: &[Part<'_>]) -> Result<(), ModelError> {
        for part in parts {
            let span = part.kv.span();
            let owned = span.first >= self.span.first && span.last <= self.span.last;
            let one = span.layers() == parts[0].kv.span().layers();
            if !owned || !one || *part.kv.layout() != self.layout {
                return Err(self.lacks(span));
            }
            self.check_tokens(part.tokens)?;
        }
        Ok(())
    }

    /// Whether `hidden` is `tokens` tokens of this model.
    ///
    /// # Errors
    /// With both shapes.
    pub fn check_hidden(&self, hidden: &Hidden, tokens: usize) -> Result<(), ModelError> {
        let (width, found) = (self.config.hidden_width(), hidden.as_slice().len());
        let expected = tokens * width;
        if hidden.width() == width && found == expected {
            return Ok(());
        }
        Err(ModelError::Hidden {
            tokens,
            width,
            expected,
            found,
        })
    }

    /// Whether `hidden` has the streams of these tokens.
    ///
    /// # Errors
    /// With the shape that it must have at least.
    pub fn check_rows(&self, hidden: &Hidden, tokens: &[usize]) -> Result<(), ModelError> {
        let needed = tokens.iter().map(|token| token + 1).max().unwrap_or(0);
        if needed > hidden.tokens() || hidden.width() != self.config.hidden_width() {
            return self.check_hidden(hidden, needed);
        }
        Ok(())
    }

    /// Whether the vocabulary has every token.
    ///
    /// # Errors
    /// With the first id that it lacks.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let vocabulary = self.config.n_vocab;
        match tokens
            .iter()
            .enumerate()
            .find(|(_, token)| **token as usize >= vocabulary)
        {
            Some((at, found)) => Err(ModelError::Token {
                at,
                vocabulary,
                found: *found,
            }),
            None => Ok(()),
        }
    }

    /// The error of a slice that was asked for what it does not own.
    pub fn lacks(&self, what: impl ToString) -> ModelError {
        ModelError::Span {
            asked: what.to_string(),
            owned: self.span,
        }
    }
}

/// Whether a model of `config` has the layers of `span`.
///
/// # Errors
/// With those that it has.
pub fn check_span(config: &ModelConfig, span: LayerSpan) -> Result<(), ModelError> {
    if span.first <= span.last && span.last < config.n_layer {
        return Ok(());
    }
    Err(ModelError::Span {
        asked: span.to_string(),
        owned: LayerSpan::full(config.n_layer),
    })
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

    /// Runs layers over the tokens of several sessions at once, each at the frontier of its KV; the weights are read once for all. `hidden`
    /// holds the tokens of all parts, one part after the other; it is changed in place and every KV is extended. The result of a part is
    /// the same, bit for bit, whatever parts are beside it.
    ///
    /// # Errors
    /// When the slice does not own the layers of a part, parts have different layers, or `hidden` has another shape. Nothing was changed then.
    /// [`ModelError::Stopped`] when [`stop`](crate::stop) asks for it: then the KV must go back to a checkpoint, or away.
    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError>;

    /// Runs the layers of `kv` over tokens at its frontier; changes `hidden` in place and extends `kv`.
    ///
    /// # Errors
    /// As [`ModelSlice::forward_batch`].
    fn forward(&self, tokens: &[u32], hidden: &mut Hidden, kv: &mut Kv) -> Result<(), ModelError> {
        self.forward_batch(&mut [Part { tokens, kv }], hidden)
    }

    /// The logits of some tokens, `[tokens][n_vocab]`; the head is read once for all of them.
    ///
    /// # Errors
    /// When the slice does not own the head or `hidden` lacks a token.
    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError>;

    /// The logits of one token, `n_vocab` of them.
    ///
    /// # Errors
    /// As [`ModelSlice::logits_batch`].
    fn logits(&self, hidden: &Hidden, token: usize) -> Result<Vec<f32>, ModelError> {
        self.logits_batch(hidden, &[token])
    }

    /// Computes `token` and after it `guess`, which may be taken back: `kv` is on trial until [`Kv::keep_trial`] or [`Kv::undo_trial`]. The streams and
    /// the logits of both; those of `token` are what a pass of it alone gives.
    ///
    /// # Errors
    /// As [`ModelSlice::embed`], [`ModelSlice::forward_batch`] and [`ModelSlice::logits_batch`].
    fn forward_guess(&self, token: u32, guess: u32, kv: &mut Kv) -> Result<(Hidden, Vec<f32>), ModelError> {
        let tokens = [token, guess];
        let mut hidden = self.embed(&tokens)?;
        kv.begin_trial(&tokens[..1]);
        self.forward(&tokens, &mut hidden, kv)?;
        let logits = self.logits_batch(&hidden, &[0, 1])?;
        Ok((hidden, logits))
    }

    /// The draft head, where one is loaded. Decoding then guesses with it; what is decoded stays the same.
    fn drafter(&self) -> Option<&dyn Drafter> {
        None
    }
}
