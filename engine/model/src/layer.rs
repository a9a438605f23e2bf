//! The weights of one layer, found and checked at load.

use ds4_gguf::{ModelConfig, Weights};
use ds4_kernels::Form;

use crate::ModelError;
use crate::matrix::{Weight, vector};

/// One hyper-connection.
#[derive(Debug)]
pub(crate) struct Hyper {
    pub(crate) matrix: Weight,
    pub(crate) scale: Vec<f32>,
    pub(crate) base: Vec<f32>,
}

impl Hyper {
    pub(crate) fn load(weights: &Weights, prefix: &str) -> Result<Self, ModelError> {
        Ok(Self {
            matrix: Weight::load(weights, &format!("{prefix}_fn.weight"))?,
            scale: vector(weights, &format!("{prefix}_scale.weight"))?,
            base: vector(weights, &format!("{prefix}_base.weight"))?,
        })
    }
}

/// One compressor: of the attention rows, or of the indexer's.
#[derive(Debug)]
pub(crate) struct Compressor {
    pub(crate) values: Weight,
    pub(crate) gates: Weight,
    /// Position bias of the gates, `[ratio][width]`.
    pub(crate) bias: Vec<f32>,
    pub(crate) norm: Vec<f32>,
}

impl Compressor {
    fn load(weights: &Weights, prefix: &str) -> Result<Self, ModelError> {
        Ok(Self {
            values: Weight::load(weights, &format!("{prefix}_compressor_kv.weight"))?,
            gates: Weight::load(weights, &format!("{prefix}_compressor_gate.weight"))?,
            bias: vector(weights, &format!("{prefix}_compressor_ape.weight"))?,
            norm: vector(weights, &format!("{prefix}_compressor_norm.weight"))?,
        })
    }
}

/// The indexer of a ratio-4 layer.
#[derive(Debug)]
pub(crate) struct Indexer {
    pub(crate) compressor: Compressor,
    pub(crate) queries: Weight,
    pub(crate) heads: Weight,
}

/// Attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) norm: Vec<f32>,
    pub(crate) q_a: Weight,
    pub(crate) q_a_norm: Vec<f32>,
    pub(crate) q_b: Weight,
    pub(crate) kv: Weight,
    pub(crate) kv_norm: Vec<f32>,
    pub(crate) sinks: Vec<f32>,
    pub(crate) out_a: Weight,
    pub(crate) out_b: Weight,
    pub(crate) compressor: Option<Compressor>,
    pub(crate) indexer: Option<Indexer>,
}

/// How tokens find their experts.
#[derive(Debug)]
pub(crate) enum Router {
    /// By the token's id: `[n_vocab][n_used]`.
    Hash(Vec<usize>),
    /// By score, with a bias on the choice.
    Scored(Option<Vec<f32>>),
}

/// Gate, up and down of the routed or the shared expert.
#[derive(Debug)]
pub(crate) struct Expert {
    pub(crate) gate: Weight,
    pub(crate) up: Weight,
    pub(crate) down: Weight,
}

impl Expert {
    fn load(weights: &Weights, prefix: &str, suffix: &str) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{prefix}.ffn_{part}_{suffix}.weight");
        let weight = |part: &str| Weight::load(weights, &name(part));
        let (gate, up, down) = (weight("gate")?, weight("up")?, weight("down")?);
        // Both are multiplied with the same activations.
        if Form::of(gate.format()) != Form::of(up.format()) {
            return Err(ModelError::Value {
                name: name("up"),
                expected: format!("a format with the activations of {}, as gate has", gate.format()),
                found: up.format().to_string(),
            });
        }
        Ok(Self { gate, up, down })
    }
}

/// The mixture of experts of one layer.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) norm: Vec<f32>,
    pub(crate) gate: Weight,
    pub(crate) router: Router,
    pub(crate) routed: Expert,
    pub(crate) shared: Expert,
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) hyper_attention: Hyper,
    pub(crate) attention: Attention,
    pub(crate) hyper_feed_forward: Hyper,
    pub(crate) feed_forward: FeedForward,
}

impl Layer {
    /// Layer `layer` of `config`, whose tensors' names begin with `prefix`.
    pub(crate) fn load(
        weights: &Weights,
        config: &ModelConfig,
        layer: usize,
        prefix: &str,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            hyper_attention: Hyper::load(weights, &format!("{prefix}.hc_attn"))?,
            attention: attention(weights, config.ratios[layer], prefix)?,
            hyper_feed_forward: Hyper::load(weights, &format!("{prefix}.hc_ffn"))?,
            feed_forward: feed_forward(weights, config, layer, prefix)?,
        })
    }
}

fn attention(weights: &Weights, ratio: u32, prefix: &str) -> Result<Attention, ModelError> {
    let weight = |name: &str| Weight::load(weights, &format!("{prefix}.{name}.weight"));
    let values = |name: &str| vector(weights, &format!("{prefix}.{name}.weight"));
    Ok(Attention {
        norm: values("attn_norm")?,
        q_a: weight("attn_q_a")?,
        q_a_norm: values("attn_q_a_norm")?,
        q_b: weight("attn_q_b")?,
        kv: weight("attn_kv")?,
        kv_norm: values("attn_kv_a_norm")?,
        sinks: values("attn_sinks")?,
        out_a: weight("attn_output_a")?,
        out_b: weight("attn_output_b")?,
        compressor: (ratio != 0)
            .then(|| Compressor::load(weights, &format!("{prefix}.attn")))
            .transpose()?,
        indexer: (ratio == 4).then(|| indexer(weights, prefix)).transpose()?,
    })
}

fn indexer(weights: &Weights, prefix: &str) -> Result<Indexer, ModelError> {
    Ok(Indexer {
        compressor: Compressor::load(weights, &format!("{prefix}.indexer"))?,
        queries: Weight::load(weights, &format!("{prefix}.indexer.attn_q_b.weight"))?,
        heads: Weight::load(weights, &format!("{prefix}.indexer.proj.weight"))?,
    })
}

fn feed_forward(
    weights: &Weights,
    config: &ModelConfig,
    layer: usize,
    prefix: &str,
) -> Result<FeedForward, ModelError> {
    let router = if layer < config.n_hash {
        Router::Hash(table(
            weights,
            config,
            &format!("{prefix}.ffn_gate_tid2eid.weight"),
        )?)
    } else {
        let name = format!("{prefix}.exp_probs_b.bias");
        Router::Scored(
            weights
                .get(&name)
                .is_some()
                .then(|| vector(weights, &name))
                .transpose()?,
        )
    };
    Ok(FeedForward {
        norm: vector(weights, &format!("{prefix}.ffn_norm.weight"))?,
        gate: Weight::load(weights, &format!("{prefix}.ffn_gate_inp.weight"))?,
        router,
        routed: Expert::load(weights, prefix, "exps")?,
        shared: Expert::load(weights, prefix, "shexp")?,
    })
}

/// Expert numbers by token id; a number that is no expert would read outside the weights.
///
/// # Errors
/// When the tensor is missing or names an expert that the model lacks.
pub fn table(weights: &Weights, config: &ModelConfig, name: &str) -> Result<Vec<usize>, ModelError> {
    let read = |bytes: &[u8]| {
        let found = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        usize::try_from(found)
            .ok()
            .filter(|expert| *expert < config.n_expert)
            .ok_or_else(|| ModelError::Value {
                name: name.to_owned(),
                expected: format!("expert numbers below {}", config.n_expert),
                found: found.to_string(),
            })
    };
    weights.require(name)?.data.chunks_exact(4).map(read).collect()
}
