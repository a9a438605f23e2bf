//! The draft head (multi-token prediction): one more layer, which guesses the token after the next one.
//!
//! For a position `t` it joins what the model made of token `t`, its streams after the last layer, with the embedding of token `t + 1`, and ends in
//! the model's own output matrix. Whatever it guesses, the model has the last word: a guess saves a pass when it is the token that the model
//! chooses there, and costs a part of one when it is not.
//!
//! The layer sees a window of its own rows. They belong to no session: where they are not there, after a handoff, a session from disk or a pass
//! that was shared with others, the window is empty at first. That is sound, since no row of the session and no token depends on it; the guesses
//! are worse until it has filled. For the same reason its positions count from where its window began: only differences of positions matter to it.

use ds4_gguf::{Gguf, LayerSpan, Weights};
use ds4_kernels::Backend;

use crate::graph::Graph;
use crate::layer::{Hyper, Layer};
use crate::matrix::{Weight, vector};
use crate::sampling::greedy;
use crate::{Hidden, Kv, ModelError, ModelSlice};

/// Guesses tokens.
pub trait Drafter: Send + Sync {
    /// The head's rows before it has seen anything of a session.
    fn empty(&self) -> Kv;

    /// Pairs of a token and streams that the head can see at once: more of them tell it nothing.
    fn window(&self) -> usize;

    /// Takes note of `tokens`, each with the streams of the token before it in `hidden`, and guesses what comes after the last one. `kv` holds the
    /// rows of the pairs before them.
    ///
    /// # Errors
    /// When there is no token, one is outside the vocabulary, or `hidden` has another shape.
    fn draft(&self, kv: &mut Kv, tokens: &[u32], hidden: &Hidden) -> Result<u32, ModelError>;
}

/// The head's weights.
#[derive(Debug)]
pub(crate) struct DraftHead<B> {
    /// Its layer, as a model of one layer.
    block: Graph<B>,
    token_norm: Vec<f32>,
    token: Weight,
    streams_norm: Vec<f32>,
    streams: Weight,
    mix: Hyper,
    norm: Vec<f32>,
}

impl<B: Backend> Graph<B> {
    /// Adds the draft head that lies in `gguf`: the model's file, or one of its own.
    ///
    /// # Errors
    /// When this is not the whole model, or when a tensor of the head is missing or not what the model implies; the error names it.
    pub fn with_draft(mut self, gguf: &Gguf, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, ModelError> {
        let whole = LayerSpan::full(self.config().n_layer);
        if self.info().span != whole {
            return Err(self
                .info()
                .lacks(format!("{whole} (the draft head needs the whole model)")));
        }
        let weights = Weights::map_draft(gguf, self.config(), progress)?;
        let named = |part: &str| format!("{}.{part}", ds4_gguf::tensors::DRAFT);
        let weight = |part: &str| Weight::load(&weights, &named(part));
        let values = |part: &str| vector(&weights, &named(part));
        let (token, streams) = (weight("e_proj.weight")?, weight("h_proj.weight")?);
        let (token_norm, streams_norm) = (values("enorm.weight")?, values("hnorm.weight")?);
        let mix = Hyper::load(&weights, &named("hc_head"))?;
        let norm = values("norm.weight")?;
        let config = self.config().draft();
        let layer = Layer::load(&weights, &config, 0, ds4_gguf::tensors::DRAFT)?;
        let block = self.block(gguf, config, weights, layer)?;
        self.set_draft(DraftHead {
            block,
            token_norm,
            token,
            streams_norm,
            streams,
            mix,
            norm,
        });
        Ok(self)
    }

    /// What the layer takes: every stream of a token with its share of the next token's embedding.
    fn joined(&self, head: &DraftHead<B>, tokens: &[u32], hidden: &Hidden) -> Result<Hidden, ModelError> {
        let (n_embd, width) = (self.config().n_embd, hidden.width());
        let embedded = self.embed(tokens)?;
        let first_streams = embedded.as_slice().chunks_exact(width);
        let mut next: Vec<f32> = first_streams
            .flat_map(|streams| &streams[..n_embd])
            .copied()
            .collect();
        self.normalise(&mut next, &head.token_norm);
        let next = head.block.project(&head.token, &self.input(&next, n_embd));
        let mut streams = hidden.as_slice().to_vec();
        self.normalise(&mut streams, &head.streams_norm);
        let mut joined = head.block.project(&head.streams, &self.input(&streams, n_embd));
        for (streams, next) in joined.chunks_exact_mut(width).zip(next.chunks_exact(n_embd)) {
            for stream in streams.chunks_exact_mut(n_embd) {
                stream.iter_mut().zip(next).for_each(|(x, next)| *x += next);
            }
        }
        Hidden::from_vec(width, joined).ok_or_else(|| self.info().lacks("hidden states of width 0"))
    }

    fn head_of_draft(&self) -> Result<&DraftHead<B>, ModelError> {
        self.draft_head().ok_or_else(|| self.info().lacks("a draft head"))
    }
}

impl<B: Backend> Drafter for Graph<B> {
    fn empty(&self) -> Kv {
        let layout = &self
            .draft_head()
            .map_or_else(|| self.info(), |head| head.block.info())
            .layout;
        Kv::new(layout, LayerSpan::full(layout.n_layer()))
    }

    fn window(&self) -> usize {
        self.config().window
    }

    fn draft(&self, kv: &mut Kv, tokens: &[u32], hidden: &Hidden) -> Result<u32, ModelError> {
        let head = self.head_of_draft()?;
        self.info().check_hidden(hidden, tokens.len())?;
        let last = tokens
            .len()
            .checked_sub(1)
            .ok_or_else(|| self.info().lacks("a guess after no token"))?;
        let mut streams = self.joined(head, tokens, hidden)?;
        head.block.forward(tokens, &mut streams, kv)?;
        let x = head.block.mixed(&head.mix, &head.norm, streams.token(last));
        Ok(greedy(&self.scores(&x)?))
    }
}
