//! Which tensors a model of some config must have, with what dimensions and in which formats.

use ds4_kernels::Format;

use crate::{Gguf, GgufError, LayerSpan, ModelConfig, TensorInfo};

/// Small vectors: norms, biases, sinks.
const VECTOR: &[Format] = &[Format::F32];
/// Matrices that ds4's files keep unquantised.
const PLAIN: &[Format] = &[Format::F16, Format::F32];
/// Dense matrices.
const DENSE: &[Format] = &[Format::Q8_0, Format::F16, Format::F32];
/// Routed experts.
const EXPERTS: &[Format] = &[
    Format::Iq2Xxs,
    Format::Mxfp4,
    Format::Q2K,
    Format::Q4K,
    Format::Q8_0,
    Format::F32,
];
/// Expert numbers by token id.
const TABLE: &[Format] = &[Format::I32];

/// What the names of a draft head's tensors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DraftNames {
    /// `mtp.0.*`, as ds4 has them: a matrix for each of the two inputs, and a way of its own to the model's output matrix.
    Mtp,
    /// Those of the block of this number, after the model's layers, as llama.cpp has them: one matrix for both inputs; the way out is the model's, but
    /// for a norm that may be its own.
    Block(usize),
}

impl DraftNames {
    /// Those of the head in this file, or the first ones where it has none.
    #[must_use]
    pub fn of(gguf: &Gguf, config: &ModelConfig) -> Self {
        let block = Self::Block(config.n_layer);
        let there = gguf.tensor(&format!("{}.nextn.eh_proj.weight", block.prefix()));
        there.map_or(Self::Mtp, |_| block)
    }

    /// What the names of its layer's tensors begin with.
    #[must_use]
    pub fn prefix(self) -> String {
        match self {
            Self::Mtp => "mtp.0".into(),
            Self::Block(number) => format!("blk.{number}"),
        }
    }
}

/// One tensor that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Name in the file.
    pub name: String,
    /// Dimensions in GGUF order: the fastest first.
    pub dims: Vec<u64>,
    /// Formats that the kernels can read here.
    pub formats: &'static [Format],
    /// A file without it is still complete.
    pub optional: bool,
}

struct List(Vec<Expected>);

impl List {
    fn add(&mut self, name: impl Into<String>, dims: &[usize], formats: &'static [Format]) {
        let dims = dims.iter().map(|dim| *dim as u64).collect();
        self.0.push(Expected {
            name: name.into(),
            dims,
            formats,
            optional: false,
        });
    }
}

/// The tensors of `span`: its layers, the embedding when it starts at layer 0, the head when it has it. In use order.
#[must_use]
pub fn expected(config: &ModelConfig, span: LayerSpan) -> Vec<Expected> {
    let mut list = List(Vec::new());
    if span.first == 0 {
        list.add("token_embd.weight", &[config.n_embd, config.n_vocab], PLAIN);
    }
    for layer in span.layers() {
        let prefix = format!("blk.{layer}");
        attention(&mut list, config, &prefix);
        compressor(&mut list, config, layer);
        experts(&mut list, config, layer, &prefix);
    }
    if span.head {
        list.add(
            "output_hc_fn.weight",
            &[config.hidden_width(), config.hc.streams],
            PLAIN,
        );
        list.add("output_hc_scale.weight", &[1], VECTOR);
        list.add("output_hc_base.weight", &[config.hc.streams], VECTOR);
        list.add("output_norm.weight", &[config.n_embd], VECTOR);
        list.add("output.weight", &[config.n_embd, config.n_vocab], DENSE);
    }
    list.0
}

/// The tensors of the draft head: its layer, which is that of [`ModelConfig::draft`], what joins its two inputs, and its way to the model's output
/// matrix. In use order.
#[must_use]
pub fn draft(config: &ModelConfig, names: DraftNames) -> Vec<Expected> {
    let (mut list, config, prefix) = (List(Vec::new()), config.draft(), names.prefix());
    let embd = config.n_embd;
    match names {
        DraftNames::Mtp => {
            for side in ["e", "h"] {
                list.add(format!("{prefix}.{side}norm.weight"), &[embd], VECTOR);
                list.add(format!("{prefix}.{side}_proj.weight"), &[embd, embd], DENSE);
            }
        }
        DraftNames::Block(_) => {
            list.add(format!("{prefix}.nextn.enorm.weight"), &[embd], VECTOR);
            list.add(format!("{prefix}.nextn.hnorm.weight"), &[embd], VECTOR);
            list.add(format!("{prefix}.nextn.eh_proj.weight"), &[2 * embd, embd], DENSE);
        }
    }
    attention(&mut list, &config, &prefix);
    experts(&mut list, &config, 0, &prefix);
    match names {
        DraftNames::Mtp => {
            let streams = config.hc.streams;
            let dims = [config.hidden_width(), streams];
            list.add(format!("{prefix}.hc_head_fn.weight"), &dims, PLAIN);
            list.add(format!("{prefix}.hc_head_scale.weight"), &[1], VECTOR);
            list.add(format!("{prefix}.hc_head_base.weight"), &[streams], VECTOR);
            list.add(format!("{prefix}.norm.weight"), &[embd], VECTOR);
        }
        DraftNames::Block(_) => {
            list.add(format!("{prefix}.nextn.shared_head_norm.weight"), &[embd], VECTOR);
            if let Some(norm) = list.0.last_mut() {
                norm.optional = true;
            }
        }
    }
    list.0
}

fn hyper(list: &mut List, config: &ModelConfig, prefix: &str, block: &str) {
    list.add(
        format!("{prefix}.hc_{block}_fn.weight"),
        &[config.hidden_width(), config.hc_mix()],
        PLAIN,
    );
    list.add(format!("{prefix}.hc_{block}_scale.weight"), &[3], VECTOR);
    list.add(
        format!("{prefix}.hc_{block}_base.weight"),
        &[config.hc_mix()],
        VECTOR,
    );
}

fn attention(list: &mut List, config: &ModelConfig, prefix: &str) {
    hyper(list, config, prefix, "attn");
    let heads = config.n_head * config.head_dim;
    let (group, low) = (heads / config.o_groups, config.o_groups * config.o_lora);
    let mut add =
        |name: &str, dims: &[usize], formats| list.add(format!("{prefix}.{name}.weight"), dims, formats);
    add("attn_norm", &[config.n_embd], VECTOR);
    add("attn_q_a", &[config.n_embd, config.q_lora], DENSE);
    add("attn_q_a_norm", &[config.q_lora], VECTOR);
    add("attn_q_b", &[config.q_lora, heads], DENSE);
    add("attn_kv", &[config.n_embd, config.head_dim], DENSE);
    add("attn_kv_a_norm", &[config.head_dim], VECTOR);
    add("attn_sinks", &[config.n_head], VECTOR);
    add("attn_output_a", &[group, low], DENSE);
    add("attn_output_b", &[low, config.n_embd], DENSE);
}

fn compressor(list: &mut List, config: &ModelConfig, layer: usize) {
    let ratio = config.ratios[layer] as usize;
    if ratio == 0 {
        return;
    }
    let width = config.compressor_width(layer);
    let mut add =
        |name: &str, dims: &[usize], formats| list.add(format!("blk.{layer}.{name}.weight"), dims, formats);
    add("attn_compressor_ape", &[width, ratio], PLAIN);
    add("attn_compressor_kv", &[config.n_embd, width], PLAIN);
    add("attn_compressor_gate", &[config.n_embd, width], PLAIN);
    add("attn_compressor_norm", &[config.head_dim], VECTOR);
    if ratio == 4 {
        let (heads, dim) = (config.indexer.heads, config.indexer.dim);
        add("indexer.attn_q_b", &[config.q_lora, heads * dim], DENSE);
        add("indexer.proj", &[config.n_embd, heads], PLAIN);
        add("indexer_compressor_ape", &[2 * dim, ratio], PLAIN);
        add("indexer_compressor_kv", &[config.n_embd, 2 * dim], PLAIN);
        add("indexer_compressor_gate", &[config.n_embd, 2 * dim], PLAIN);
        add("indexer_compressor_norm", &[dim], VECTOR);
    }
}

fn experts(list: &mut List, config: &ModelConfig, layer: usize, prefix: &str) {
    hyper(list, config, prefix, "ffn");
    let (embd, ff, all) = (config.n_embd, config.n_ff, config.n_expert);
    let mut add = |name: &str, dims: &[usize], formats| list.add(format!("{prefix}.{name}"), dims, formats);
    add("ffn_norm.weight", &[embd], VECTOR);
    add("ffn_gate_inp.weight", &[embd, all], PLAIN);
    if layer < config.n_hash {
        add("ffn_gate_tid2eid.weight", &[config.n_used, config.n_vocab], TABLE);
    } else {
        add("exp_probs_b.bias", &[all], VECTOR);
    }
    add("ffn_gate_exps.weight", &[embd, ff, all], EXPERTS);
    add("ffn_up_exps.weight", &[embd, ff, all], EXPERTS);
    add("ffn_down_exps.weight", &[ff, embd, all], EXPERTS);
    add("ffn_gate_shexp.weight", &[embd, ff], DENSE);
    add("ffn_up_shexp.weight", &[embd, ff], DENSE);
    add("ffn_down_shexp.weight", &[ff, embd], DENSE);
    // A router without a bias selects by its probabilities alone; published files leave the tensor out where it is all zero.
    if let Some(bias) = list
        .0
        .iter_mut()
        .rev()
        .find(|tensor| tensor.name.ends_with("exp_probs_b.bias"))
    {
        bias.optional = true;
    }
}

/// Checks every tensor of `span` against `config`; returns those that the file has, in use order.
///
/// # Errors
/// Names the first tensor that is missing, or has other dimensions or a format that the kernels cannot read here.
pub fn check<'a>(
    gguf: &'a Gguf,
    config: &ModelConfig,
    span: LayerSpan,
) -> Result<Vec<&'a TensorInfo>, GgufError> {
    present(gguf, expected(config, span))
}

/// The same for the draft head of a model of `config`, which lies in the model's file or in one of its own.
///
/// # Errors
/// As [`check`].
pub fn check_draft<'a>(gguf: &'a Gguf, config: &ModelConfig) -> Result<Vec<&'a TensorInfo>, GgufError> {
    let names = DraftNames::of(gguf, config);
    for own in ["embed_tokens", "shared_head_head"] {
        let name = format!("{}.nextn.{own}.weight", names.prefix());
        if gguf.tensor(&name).is_some() {
            let (expected, found) = ("none, since the model's own is used", "a tensor");
            return Err(GgufError::unexpected(format!("tensor {name}"), expected, found));
        }
    }
    present(gguf, draft(config, names))
}

fn present(gguf: &Gguf, all: Vec<Expected>) -> Result<Vec<&TensorInfo>, GgufError> {
    let mut present = Vec::new();
    for expected in all {
        match gguf.tensor(&expected.name) {
            Some(tensor) => present.push(matches(tensor, &expected)?),
            None if expected.optional => {}
            None => return Err(GgufError::MissingTensor(expected.name)),
        }
    }
    Ok(present)
}

fn matches<'a>(tensor: &'a TensorInfo, expected: &Expected) -> Result<&'a TensorInfo, GgufError> {
    let name = format!("tensor {}", tensor.name);
    if tensor.dims != expected.dims {
        return Err(GgufError::unexpected(
            name,
            format!("shape {:?}", expected.dims),
            format!("{:?}", tensor.dims),
        ));
    }
    if !expected.formats.contains(&tensor.format) {
        let names: Vec<_> = expected.formats.iter().map(|format| format.name()).collect();
        return Err(GgufError::unexpected(
            name,
            format!("a type out of {}", names.join(", ")),
            tensor.format,
        ));
    }
    Ok(tensor)
}
