//! The draft head (multi-token prediction): one more layer, which guesses the token after the next one.
//!
//! For a position `t` it joins what the model made of token `t`, its streams after the last layer, with the embedding of token `t + 1`, and ends in
//! the model's own output matrix. Whatever it guesses, the model has the last word: a guess saves a pass when it is the token that the model
//! chooses there, and costs a part of one when it is not.
//!
//! The layer sees a window of its own rows. They belong to no session: where they are not there, after a handoff, a session from disk or a pass
//! that was shared with others, the window is empty at first. That is sound, since no row of the session and no token depends on it; the guesses
//! are worse until it has filled. For the same reason its positions count from where its window began: only differences of positions matter to it.

use ds4_gguf::tensors::DraftNames;
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

/// The matrices that join a token and streams.
#[derive(Debug)]
enum Join {
    /// One for each.
    Apart { token: Weight, streams: Weight },
    /// One over the token and a stream behind it.
    Together(Weight),
}

/// The head's weights.
#[derive(Debug)]
pub(crate) struct DraftHead<B> {
    /// Its layer, as a model of one layer.
    block: Graph<B>,
    token_norm: Vec<f32>,
    streams_norm: Vec<f32>,
    join: Join,
    /// The way to the model's output matrix, where it is not the model's own.
    mix: Option<Hyper>,
    norm: Option<Vec<f32>>,
}

impl<B: Backend> DraftHead<B> {
    /// The head of `model` in `gguf`.
    fn load(model: &Graph<B>, gguf: &Gguf, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, ModelError> {
        let (names, config) = (DraftNames::of(gguf, model.config()), model.config().draft());
        let weights = Weights::map_draft(gguf, model.config(), progress)?;
        let prefix = names.prefix();
        let weight = |part: &str| Weight::load(&weights, &format!("{prefix}.{part}.weight"));
        let values = |part: &str| vector(&weights, &format!("{prefix}.{part}.weight"));
        let (norms, join, mix, norm) = match names {
            DraftNames::Mtp => {
                let (token, streams) = (weight("e_proj")?, weight("h_proj")?);
                let mix = Hyper::load(&weights, &format!("{prefix}.hc_head"))?;
                let join = Join::Apart { token, streams };
                (["enorm", "hnorm"], join, Some(mix), Some("norm"))
            }
            DraftNames::Block(_) => {
                let own = "nextn.shared_head_norm";
                let norm = weights.get(&format!("{prefix}.{own}.weight")).map(|_| own);
                let join = Join::Together(weight("nextn.eh_proj")?);
                (["nextn.enorm", "nextn.hnorm"], join, None, norm)
            }
        };
        let ([token_norm, streams_norm], norm) = (norms.map(values), norm.map(values).transpose()?);
        let layer = Layer::load(&weights, &config, 0, &prefix)?;
        Ok(Self {
            block: model.block(gguf, config, weights, layer)?,
            token_norm: token_norm?,
            streams_norm: streams_norm?,
            join,
            mix,
            norm,
        })
    }

    /// What the layer takes of normalised embeddings `[tokens][n_embd]` and normalised streams `[tokens][streams][n_embd]`: every stream with its share
    /// of the next token.
    fn joined(&self, tokens: &[f32], streams: &[f32]) -> Vec<f32> {
        let (n_embd, count) = (self.block.config().n_embd, self.block.config().hc.streams);
        let project = |weight: &Weight, x: &[f32]| {
            let input = self.block.input(x, weight.cols());
            self.block.project(weight, &input).to_vec()
        };
        match &self.join {
            Join::Apart {
                token,
                streams: matrix,
            } => {
                let (tokens, mut joined) = (project(token, tokens), project(matrix, streams));
                let of_tokens = tokens
                    .chunks_exact(n_embd)
                    .flat_map(|token| std::iter::repeat_n(token, count));
                for (stream, token) in joined.chunks_exact_mut(n_embd).zip(of_tokens) {
                    stream.iter_mut().zip(token).for_each(|(x, token)| *x += token);
                }
                joined
            }
            Join::Together(matrix) => {
                let with_token = tokens
                    .chunks_exact(n_embd)
                    .zip(streams.chunks_exact(n_embd * count));
                let pairs = with_token.flat_map(|(token, streams)| {
                    streams
                        .chunks_exact(n_embd)
                        .flat_map(move |stream| [token, stream])
                });
                project(matrix, &pairs.flatten().copied().collect::<Vec<_>>())
            }
        }
    }
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
        let head = DraftHead::load(&self, gguf, progress)?;
        self.set_draft(head);
        Ok(self)
    }

    /// What the head's layer takes for tokens and the streams before them.
    fn joined(&self, head: &DraftHead<B>, tokens: &[u32], hidden: &Hidden) -> Result<Hidden, ModelError> {
        let (n_embd, width) = (self.config().n_embd, hidden.width());
        let embedded = self.embed(tokens)?;
        let first_streams = embedded.as_slice().chunks_exact(width);
        let mut next: Vec<f32> = first_streams
            .flat_map(|streams| &streams[..n_embd])
            .copied()
            .collect();
        let mut streams = hidden.as_slice().to_vec();
        self.normalise(&mut next, &head.token_norm);
        self.normalise(&mut streams, &head.streams_norm);
        let joined = head.joined(&next, &streams);
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
        let (last, (own_mix, own_norm)) = (streams.token(last), self.way_out()?);
        let norm = head.norm.as_deref().unwrap_or(own_norm);
        let x = match &head.mix {
            Some(mix) => head.block.mixed(mix, norm, last),
            None => self.mixed(own_mix, norm, last),
        };
        Ok(greedy(&self.scores(&x)?))
    }
}
