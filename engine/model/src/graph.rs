//! The whole pass over one run of layers.

use std::sync::Arc;

use ds4_gguf::{Gguf, LayerSpan, ModelConfig, Weights};
use ds4_kernels::ops::rope::{Rope, Yarn};
use ds4_kernels::{Backend, Buffers};

use crate::draft::{DraftHead, Drafter};
use crate::layer::{Hyper, Layer};
use crate::matrix::{Weight, vector};
use crate::pass::{Pass, in_passes};
use crate::slice::check_span;
use crate::{Hidden, KvLayout, ModelError, ModelSlice, Numerics, Part, SliceInfo, stop};

/// Tokens that go through all layers together: bounds the memory of a long chunk's activations. Weights are read once per so many tokens,
/// which is little beside the arithmetic on them.
pub(crate) const PASS: usize = 512;

/// What turns the last streams into logits.
#[derive(Debug)]
struct Head {
    hyper: Hyper,
    norm: Vec<f32>,
    output: Weight,
}

/// A loaded run of layers on one back end.
#[derive(Debug)]
pub struct Graph<B> {
    backend: Arc<B>,
    info: SliceInfo,
    weights: Weights,
    embedding: Option<Weight>,
    layers: Vec<Layer>,
    head: Option<Head>,
    rope: Rope,
    rope_compressed: Rope,
    draft: Option<Box<DraftHead<B>>>,
    /// What the pass at hand computes between its products.
    buffers: Buffers,
}

impl<B: Backend> Graph<B> {
    /// Maps and checks the layers of `span`. `progress(done, total)` in bytes while pages are read.
    ///
    /// # Errors
    /// When the file is not usable; the error names the key or tensor.
    pub fn load(
        gguf: &Gguf,
        span: LayerSpan,
        numerics: Numerics,
        backend: B,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::from_gguf(gguf)?;
        check_span(&config, span)?;
        let weights = Weights::map(gguf, &config, span, progress)?;
        let layers = span
            .layers()
            .map(|layer| Layer::load(&weights, &config, layer, &format!("blk.{layer}")))
            .collect::<Result<_, _>>()?;
        let embedding = (span.first == 0)
            .then(|| Weight::load(&weights, "token_embd.weight"))
            .transpose()?;
        let head = span.head.then(|| Head::load(&weights)).transpose()?;
        let (rope, rope_compressed) = ropes(&config);
        let info = SliceInfo {
            span,
            numerics,
            fingerprint: gguf.fingerprint()?,
            backend: backend.name(),
            layout: KvLayout::new(&config, numerics),
            weight_bytes: weights.bytes(),
            config,
        };
        Ok(Self {
            backend: Arc::new(backend),
            info,
            weights,
            embedding,
            layers,
            head,
            rope,
            rope_compressed,
            draft: None,
            buffers: Buffers::new(),
        })
    }

    /// A model of one layer beside this one, on the same back end.
    pub(crate) fn block(
        &self,
        gguf: &Gguf,
        config: ModelConfig,
        weights: Weights,
        layer: Layer,
    ) -> Result<Self, ModelError> {
        let (rope, rope_compressed) = ropes(&config);
        let info = SliceInfo {
            span: LayerSpan::full(config.n_layer),
            fingerprint: gguf.fingerprint()?,
            layout: KvLayout::new(&config, self.info.numerics),
            weight_bytes: weights.bytes(),
            config,
            ..self.info.clone()
        };
        Ok(Self {
            backend: Arc::clone(&self.backend),
            info,
            weights,
            embedding: None,
            layers: vec![layer],
            head: None,
            rope,
            rope_compressed,
            draft: None,
            buffers: Buffers::new(),
        })
    }

    pub(crate) fn set_draft(&mut self, head: DraftHead<B>) {
        self.draft = Some(Box::new(head));
    }

    pub(crate) fn draft_head(&self) -> Option<&DraftHead<B>> {
        self.draft.as_deref()
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    pub(crate) const fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub(crate) const fn config(&self) -> &ModelConfig {
        &self.info.config
    }

    pub(crate) const fn numerics(&self) -> Numerics {
        self.info.numerics
    }

    pub(crate) const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The rotation of layers with or without compression.
    pub(crate) fn rope(&self, layer: usize) -> &Rope {
        if self.config().ratios[layer] == 0 {
            &self.rope
        } else {
            &self.rope_compressed
        }
    }

    fn layer(&self, number: usize, pass: &mut Pass<'_, '_>, streams: &mut [f32]) {
        let layer = &self.layers[number - self.info.span.first];
        let (mixes, x) = self.open(&layer.hyper_attention, &layer.attention.norm, streams);
        let y = self.attention(
            number,
            &layer.attention,
            &self.input(&x, self.config().n_embd),
            pass,
        );
        self.close(&mixes, &y, streams);
        let (mixes, x) = self.open(&layer.hyper_feed_forward, &layer.feed_forward.norm, streams);
        let y = self.feed_forward(number, &layer.feed_forward, &pass.tokens, &x);
        self.close(&mixes, &y, streams);
        pass.trim(number);
    }

    /// All layers of the parts' KV over all their tokens.
    fn pass(&self, parts: &mut [Part<'_>], streams: &mut [f32]) -> Result<(), ModelError> {
        let done = self.layers_of(parts, streams);
        self.buffers.clear();
        done
    }

    fn layers_of(&self, parts: &mut [Part<'_>], streams: &mut [f32]) -> Result<(), ModelError> {
        let Some(layers) = parts.first().map(|part| part.kv.span().layers()) else {
            return Ok(());
        };
        let mut pass = Pass::new(parts, &self.rope, &self.rope_compressed);
        for number in layers {
            if stop::requested() {
                return Err(ModelError::Stopped);
            }
            self.layer(number, &mut pass, streams);
        }
        pass.advance();
        Ok(())
    }

    fn output_head(&self) -> Result<&Head, ModelError> {
        self.head
            .as_ref()
            .ok_or_else(|| self.info.lacks("output (the head)"))
    }

    /// How the last streams become what the output matrix takes.
    pub(crate) fn way_out(&self) -> Result<(&Hyper, &[f32]), ModelError> {
        self.output_head().map(|head| (&head.hyper, &head.norm[..]))
    }

    /// The logits of mixed streams `[tokens][n_embd]`.
    pub(crate) fn scores(&self, x: &[f32]) -> Result<Vec<f32>, ModelError> {
        let input = self.input(x, self.config().n_embd);
        Ok(self.project(&self.output_head()?.output, &input).to_vec())
    }

    pub(crate) fn normalise(&self, rows: &mut [f32], weight: &[f32]) {
        let (rms, eps) = (self.backend().ops().rms, self.config().rms_eps);
        self.backend()
            .each_row(rows, weight.len(), &|_, row| rms(row, Some(weight), eps));
    }
}

impl Head {
    fn load(weights: &Weights) -> Result<Self, ModelError> {
        Ok(Self {
            hyper: Hyper::load(weights, "output_hc")?,
            norm: vector(weights, "output_norm.weight")?,
            output: Weight::load(weights, "output.weight")?,
        })
    }
}

/// The rotations of layers without compression, and of those with it.
#[allow(clippy::cast_precision_loss)] // a context length
#[must_use]
pub fn ropes(config: &ModelConfig) -> (Rope, Rope) {
    let rope = &config.rope;
    let yarn = Yarn {
        factor: f64::from(rope.factor),
        beta_fast: f64::from(rope.beta_fast),
        beta_slow: f64::from(rope.beta_slow),
        original_context: rope.original_context as f64,
    };
    let compressed = Rope::new(f64::from(rope.compress_base), config.n_rot, Some(yarn));
    (Rope::new(f64::from(rope.base), config.n_rot, None), compressed)
}

impl<B: Backend> ModelSlice for Graph<B> {
    fn info(&self) -> &SliceInfo {
        &self.info
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.info.check_tokens(tokens)?;
        let embedding = self
            .embedding
            .as_ref()
            .ok_or_else(|| self.info.lacks("0 (the embedding)"))?;
        let (width, n_embd) = (self.config().hidden_width(), self.config().n_embd);
        let mut values = vec![0.0; tokens.len() * width];
        for (token, streams) in tokens.iter().zip(values.chunks_exact_mut(width)) {
            let (first, others) = streams.split_at_mut(n_embd);
            embedding.row(&self.weights, *token as usize, first);
            others
                .chunks_exact_mut(n_embd)
                .for_each(|stream| stream.copy_from_slice(first));
        }
        Hidden::from_vec(width, values).ok_or_else(|| self.info.lacks("hidden states of width 0"))
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.info.check_parts(parts)?;
        let tokens = parts.iter().map(|part| part.tokens.len()).sum();
        self.info.check_hidden(hidden, tokens)?;
        in_passes(PASS, parts, hidden, |parts, streams| self.pass(parts, streams))
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        let head = self.output_head()?;
        self.info.check_rows(hidden, tokens)?;
        let of_tokens: Vec<&[f32]> = tokens.iter().map(|token| hidden.token(*token)).collect();
        self.scores(&self.mixed(&head.hyper, &head.norm, &of_tokens.concat()))
    }

    fn drafter(&self) -> Option<&dyn Drafter> {
        self.draft.as_ref().map(|_| self as &dyn Drafter)
    }
}
