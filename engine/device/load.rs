//! The weights of a run of layers.

use crate::kernels::Buffer;
use crate::kernels::matrix::Weights;
use ds4_kernels::Format;
use ds4_model::ModelError;

use crate::DEVICE;
use crate::loader::Loader;

#[derive(Debug)]
pub(crate) struct Hyper {
    pub(crate) matrix: Weights,
    pub(crate) scale: Buffer<f32>,
    pub(crate) base: Buffer<f32>,
}

impl Hyper {
    fn load(loader: &Loader<'_>, prefix: &str) -> Result<Self, ModelError> {
        Ok(Self {
            matrix: loader.matrix(&format!("{prefix}_fn.weight"))?,
            scale: loader.vector(&format!("{prefix}_scale.weight"))?,
            base: loader.vector(&format!("{prefix}_base.weight"))?,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Compressor {
    pub(crate) values: Weights,
    pub(crate) gates: Weights,
    pub(crate) bias: Buffer<f32>,
    pub(crate) norm: Buffer<f32>,
}

impl Compressor {
    fn load(loader: &Loader<'_>, prefix: &str) -> Result<Self, ModelError> {
        Ok(Self {
            values: loader.matrix(&format!("{prefix}_compressor_kv.weight"))?,
            gates: loader.matrix(&format!("{prefix}_compressor_gate.weight"))?,
            bias: loader.vector(&format!("{prefix}_compressor_ape.weight"))?,
            norm: loader.vector(&format!("{prefix}_compressor_norm.weight"))?,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Indexer {
    pub(crate) compressor: Compressor,
    pub(crate) queries: Weights,
    pub(crate) heads: Weights,
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) norm: Buffer<f32>,
    pub(crate) q_a: Weights,
    pub(crate) q_a_norm: Buffer<f32>,
    pub(crate) q_b: Weights,
    pub(crate) kv: Weights,
    pub(crate) kv_norm: Buffer<f32>,
    pub(crate) sinks: Buffer<f32>,
    pub(crate) out_a: Weights,
    pub(crate) out_b: Weights,
    pub(crate) compressor: Option<Compressor>,
    pub(crate) indexer: Option<Indexer>,
}

impl Attention {
    fn load(loader: &Loader<'_>, layer: usize) -> Result<Self, ModelError> {
        let matrix = |name: &str| loader.matrix(&format!("blk.{layer}.{name}.weight"));
        let vector = |name: &str| loader.vector(&format!("blk.{layer}.{name}.weight"));
        let ratio = loader.config.ratios[layer];
        let compressor = |part: &str| Compressor::load(loader, &format!("blk.{layer}.{part}"));
        let indexer = || {
            Ok::<_, ModelError>(Indexer {
                compressor: compressor("indexer")?,
                queries: matrix("indexer.attn_q_b")?,
                heads: matrix("indexer.proj")?,
            })
        };
        Ok(Self {
            norm: vector("attn_norm")?,
            q_a: matrix("attn_q_a")?,
            q_a_norm: vector("attn_q_a_norm")?,
            q_b: matrix("attn_q_b")?,
            kv: matrix("attn_kv")?,
            kv_norm: vector("attn_kv_a_norm")?,
            sinks: vector("attn_sinks")?,
            out_a: quantised(
                matrix("attn_output_a")?,
                &format!("blk.{layer}.attn_output_a.weight"),
            )?,
            out_b: matrix("attn_output_b")?,
            compressor: (ratio != 0).then(|| compressor("attn")).transpose()?,
            indexer: (ratio == 4).then(indexer).transpose()?,
        })
    }
}

/// How tokens find their experts.
#[derive(Debug)]
pub(crate) enum Router {
    Token(Buffer<i32>),
    Score(Option<Buffer<f32>>),
}

#[derive(Debug)]
pub(crate) struct Expert {
    pub(crate) gate: Weights,
    pub(crate) up: Weights,
    pub(crate) down: Weights,
}

#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) norm: Buffer<f32>,
    pub(crate) gate: Weights,
    pub(crate) router: Router,
    pub(crate) routed: Expert,
    pub(crate) shared: Expert,
}

impl FeedForward {
    fn load(loader: &Loader<'_>, layer: usize) -> Result<Self, ModelError> {
        let expert = |suffix: &str| {
            let part = |part: &str| loader.matrix(&format!("blk.{layer}.ffn_{part}_{suffix}.weight"));
            Ok::<_, ModelError>(Expert {
                gate: part("gate")?,
                up: part("up")?,
                down: part("down")?,
            })
        };
        let bias = format!("blk.{layer}.exp_probs_b.bias");
        let router = if layer < loader.config.n_hash {
            Router::Token(loader.experts_of_tokens(&format!("blk.{layer}.ffn_gate_tid2eid.weight"))?)
        } else {
            let biased = loader.mapped.get(&bias).is_some();
            Router::Score(biased.then(|| loader.vector(&bias)).transpose()?)
        };
        let routed = expert("exps")?;
        let named = |part: &str| format!("blk.{layer}.ffn_{part}_exps.weight");
        let Expert { gate, up, down } = routed;
        let routed = Expert {
            gate: quantised(gate, &named("gate"))?,
            up: quantised(up, &named("up"))?,
            down: quantised(down, &named("down"))?,
        };
        Ok(Self {
            norm: loader.vector(&format!("blk.{layer}.ffn_norm.weight"))?,
            gate: loader.matrix(&format!("blk.{layer}.ffn_gate_inp.weight"))?,
            router,
            routed,
            shared: expert("shexp")?,
        })
    }
}

/// The kernels that pick matrices out of a stack take quantised ones alone.
fn quantised(weights: Weights, name: &str) -> Result<Weights, ModelError> {
    if matches!(weights.format(), Format::F32 | Format::F16) {
        return Err(ModelError::Value {
            name: name.to_owned(),
            expected: format!("a quantised format on {DEVICE} (use --backend cpu for this file)"),
            found: weights.format().to_string(),
        });
    }
    Ok(weights)
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) hyper_attention: Hyper,
    pub(crate) attention: Attention,
    pub(crate) hyper_feed_forward: Hyper,
    pub(crate) feed_forward: FeedForward,
}

impl Layer {
    pub(crate) fn load(loader: &Loader<'_>, layer: usize) -> Result<Self, ModelError> {
        Ok(Self {
            hyper_attention: Hyper::load(loader, &format!("blk.{layer}.hc_attn"))?,
            attention: Attention::load(loader, layer)?,
            hyper_feed_forward: Hyper::load(loader, &format!("blk.{layer}.hc_ffn"))?,
            feed_forward: FeedForward::load(loader, layer)?,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) hyper: Hyper,
    pub(crate) norm: Buffer<f32>,
    pub(crate) output: Weights,
}

impl Head {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self, ModelError> {
        Ok(Self {
            hyper: Hyper::load(loader, "output_hc")?,
            norm: loader.vector("output_norm.weight")?,
            output: loader.matrix("output.weight")?,
        })
    }
}
