//! What the engine asks of a loaded run of layers.

use crate::kernels::hyper::{self, Mixing};
use crate::kernels::{Arena, DeviceError, embedding, norm};
use ds4_gguf::ModelConfig;
use ds4_model::{Hidden, ModelError, ModelSlice, Part, SliceInfo, in_passes};

use crate::input::Input;
use crate::load::{Head, Hyper};
use crate::{DEVICE, Loaded};

/// A pass of fewer tokens is over before it could be told to end.
pub(crate) const BRIEF: usize = 64;

impl ModelSlice for Loaded {
    fn info(&self) -> &SliceInfo {
        &self.info
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.info.check_tokens(tokens)?;
        let embedding = self
            .embedding
            .as_ref()
            .ok_or_else(|| self.info.lacks("0 (the embedding)"))?;
        let (width, streams) = (self.info.config.hidden_width(), self.info.config.hc.streams);
        let values = self.turn(|arena| {
            let device = &*self.device;
            let (ids, out) = (
                arena.upload(device, tokens)?,
                arena.take(device, tokens.len() * width)?,
            );
            embedding::embed(device, embedding, ids, streams, out)?;
            device.download(out)
        })?;
        Hidden::from_vec(width, values).ok_or_else(|| self.info.lacks("hidden states of width 0"))
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.info.check_parts(parts)?;
        let tokens = parts.iter().map(|part| part.tokens.len()).sum();
        self.info.check_hidden(hidden, tokens)?;
        for part in &*parts {
            self.check_positions(part)?;
        }
        in_passes(Self::PASS, parts, hidden, |parts, streams| {
            self.pass(parts, streams)
        })
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        let head = self
            .head
            .as_ref()
            .ok_or_else(|| self.info.lacks("output (the head)"))?;
        self.info.check_rows(hidden, tokens)?;
        let streams: Vec<f32> = tokens
            .iter()
            .flat_map(|token| hidden.token(*token))
            .copied()
            .collect();
        self.turn(|arena| self.head(arena, head, &streams, tokens.len()))
    }
}

impl Loaded {
    /// Tokens that go through all layers together: bounds the scratch memory. Any number gives the same bits.
    pub const PASS: usize = 512;

    fn head(
        &self,
        arena: &Arena,
        head: &Head,
        streams: &[f32],
        tokens: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        let (device, config) = (&*self.device, &self.info.config);
        let streams = arena.upload(device, streams)?;
        let mix = Input::new(device, arena, streams, config.hidden_width()).times(&head.hyper.matrix)?;
        let n = config.hc.streams;
        hyper::head(device, mix, streams, &mixing(config, &head.hyper))?;
        let x = arena.take(device, tokens * config.n_embd)?;
        hyper::gather(device, mix, n, streams, n, x)?;
        norm::rms(device, x, head.norm.all(), config.rms_eps, x)?;
        device.download(Input::new(device, arena, x, config.n_embd).times(&head.output)?)
    }

    /// Kernels count positions with 32 bits.
    fn check_positions(&self, part: &Part<'_>) -> Result<(), ModelError> {
        let end = part.kv.frontier() + part.tokens.len() as u64;
        if u32::try_from(end).is_ok() {
            return Ok(());
        }
        Err(ModelError::Value {
            name: "position".into(),
            expected: format!("below {} on {DEVICE}", u32::MAX),
            found: end.to_string(),
        })
    }
}

/// How a connection's numbers become a mix.
pub(crate) fn mixing<'a>(config: &ModelConfig, connection: &'a Hyper) -> Mixing<'a> {
    Mixing {
        scale: connection.scale.all(),
        base: connection.base.all(),
        streams: config.hc.streams,
        iterations: config.hc.sinkhorn_iterations,
        eps: config.hc.eps,
        rms_eps: config.rms_eps,
    }
}
