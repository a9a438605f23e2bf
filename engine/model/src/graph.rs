//! The whole pass over one run of layers.

use ds4_gguf::{Gguf, LayerSpan, ModelConfig, Weights};
use ds4_kernels::Backend;
use ds4_kernels::ops::hyper::{gather, head_weights};
use ds4_kernels::ops::norm::rms;
use ds4_kernels::ops::rope::{Rope, Yarn};

use crate::layer::{Hyper, Layer};
use crate::matrix::{Weight, multiply, vector};
use crate::{Hidden, Kv, KvLayout, ModelError, ModelSlice, Numerics, SliceInfo};

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
    backend: B,
    info: SliceInfo,
    weights: Weights,
    embedding: Option<Weight>,
    layers: Vec<Layer>,
    head: Option<Head>,
    rope: Rope,
    rope_compressed: Rope,
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
        if span.last >= config.n_layer || span.first > span.last {
            return Err(ModelError::Span {
                asked: span.to_string(),
                owned: LayerSpan::full(config.n_layer),
            });
        }
        let weights = Weights::map(gguf, &config, span, progress)?;
        let layers = span
            .layers()
            .map(|layer| Layer::load(&weights, &config, layer))
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
            backend,
            info,
            weights,
            embedding,
            layers,
            head,
            rope,
            rope_compressed,
        })
    }

    pub(crate) const fn backend(&self) -> &B {
        &self.backend
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

    fn layer(&self, number: usize, tokens: &[u32], streams: &mut [f32], kv: &mut Kv) {
        let layer = &self.layers[number - self.info.span.first];
        let (mixes, mut x) = self.open(&self.weights, &layer.hyper_attention, streams);
        self.normalise(&mut x, &layer.attention.norm);
        let y = self.attention(number, &layer.attention, &x, kv);
        self.close(&mixes, &y, streams);
        let (mixes, mut x) = self.open(&self.weights, &layer.hyper_feed_forward, streams);
        self.normalise(&mut x, &layer.feed_forward.norm);
        let y = self.feed_forward(number, &layer.feed_forward, tokens, &x);
        self.close(&mixes, &y, streams);
    }

    pub(crate) fn normalise(&self, rows: &mut [f32], weight: &[f32]) {
        let eps = self.config().rms_eps;
        self.backend()
            .each_row(rows, weight.len(), &|_, row| rms(row, Some(weight), eps));
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let vocabulary = self.config().n_vocab;
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

    fn lacks(&self, what: impl ToString) -> ModelError {
        ModelError::Span {
            asked: what.to_string(),
            owned: self.info.span,
        }
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

#[allow(clippy::cast_precision_loss)] // a context length
fn ropes(config: &ModelConfig) -> (Rope, Rope) {
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
        self.check_tokens(tokens)?;
        let embedding = self
            .embedding
            .as_ref()
            .ok_or_else(|| self.lacks("0 (the embedding)"))?;
        let (width, n_embd) = (self.config().hidden_width(), self.config().n_embd);
        let mut values = vec![0.0; tokens.len() * width];
        for (token, streams) in tokens.iter().zip(values.chunks_exact_mut(width)) {
            let (first, others) = streams.split_at_mut(n_embd);
            embedding.row(&self.weights, *token as usize, first);
            others
                .chunks_exact_mut(n_embd)
                .for_each(|stream| stream.copy_from_slice(first));
        }
        Hidden::from_vec(width, values).ok_or_else(|| self.lacks("hidden states of width 0"))
    }

    fn forward(&self, tokens: &[u32], hidden: &mut Hidden, kv: &mut Kv) -> Result<(), ModelError> {
        self.check_tokens(tokens)?;
        let (span, owned) = (kv.span(), self.info.span);
        if span.first < owned.first || span.last > owned.last || *kv.layout() != self.info.layout {
            return Err(self.lacks(span));
        }
        let (width, found) = (self.config().hidden_width(), hidden.as_slice().len());
        let expected = tokens.len() * width;
        if hidden.width() != width || found != expected {
            return Err(ModelError::Hidden {
                tokens: tokens.len(),
                width,
                expected,
                found,
            });
        }
        if tokens.is_empty() {
            return Ok(());
        }
        for number in span.layers() {
            self.layer(number, tokens, hidden.as_mut_slice(), kv);
        }
        kv.advance(tokens);
        Ok(())
    }

    fn logits(&self, hidden: &Hidden, token: usize) -> Result<Vec<f32>, ModelError> {
        let head = self
            .head
            .as_ref()
            .ok_or_else(|| self.lacks("output (the head)"))?;
        if token >= hidden.tokens() || hidden.width() != self.config().hidden_width() {
            let (width, found) = (self.config().hidden_width(), hidden.as_slice().len());
            return Err(ModelError::Hidden {
                tokens: token + 1,
                width,
                expected: (token + 1) * width,
                found,
            });
        }
        let streams = hidden.token(token);
        let raw = self.hyper_raw(&self.weights, &head.hyper, streams);
        let mix = head_weights(&raw, head.hyper.scale[0], &head.hyper.base, self.config().hc.eps);
        let mut x = vec![0.0; self.config().n_embd];
        gather(&mix, streams, &mut x);
        self.normalise(&mut x, &head.norm);
        let output = head.output.part(&self.weights, 0, head.output.rows());
        Ok(multiply(&self.backend, self.numerics(), &output, &x))
    }
}
