//! The GGUF v3 header: metadata and tensor index.

use crate::tensor::Tensor;
use crate::vocabulary::Vocabulary;
use crate::{Dims, Experts};

const ALIGNMENT: u64 = 32;

/// `bytes` up to the next boundary.
pub(crate) const fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    pairs: u64,
}

/// GGUF's numbers for value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Writer {
    fn number(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.long(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.pairs += 1;
        self.text(key);
        self.number(kind);
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, STRING);
        self.text(value);
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, F32);
        self.bytes.extend(value.to_le_bytes());
    }

    #[allow(clippy::cast_possible_truncation)] // shapes
    fn count(&mut self, key: &str, value: usize) {
        self.key(key, U32);
        self.number(value as u32);
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.key(key, BOOL);
        self.bytes.push(u8::from(value));
    }

    fn array<T>(&mut self, key: &str, kind: u32, values: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.key(key, ARRAY);
        self.number(kind);
        self.long(values.len() as u64);
        values.iter().for_each(|value| put(self, value));
    }
}

/// Everything before the first tensor's data, padded.
pub(crate) fn encode(dims: &Dims, tensors: &[Tensor]) -> Vec<u8> {
    let mut pairs = Writer::default();
    general(&mut pairs, dims);
    shapes(&mut pairs, dims);
    constants(&mut pairs, dims);
    tokenizer(&mut pairs, dims);
    let mut out = Writer {
        bytes: b"GGUF".to_vec(),
        pairs: 0,
    };
    out.number(3);
    out.long(tensors.len() as u64);
    out.long(pairs.pairs);
    out.bytes.extend(pairs.bytes);
    let mut offset = 0;
    for tensor in tensors {
        index(&mut out, tensor, offset);
        offset += padded(tensor.bytes());
    }
    out.bytes.resize(out.bytes.len().next_multiple_of(32), 0);
    out.bytes
}

#[allow(clippy::cast_possible_truncation)] // at most three dimensions
fn index(out: &mut Writer, tensor: &Tensor, offset: u64) {
    out.text(&tensor.name);
    out.number(tensor.dims.len() as u32);
    tensor.dims.iter().for_each(|dim| out.long(*dim as u64));
    out.number(tensor.format.gguf_id());
    out.long(offset);
}

fn general(out: &mut Writer, dims: &Dims) {
    out.string("general.architecture", "deepseek4");
    out.string(
        "general.name",
        &format!("synthetic-{}-layers-seed-{:x}", dims.n_layer, dims.seed),
    );
    // 19 is the family's "mostly two bits", 15 "mostly four".
    out.count(
        "general.file_type",
        if dims.experts == Experts::Iq2 { 19 } else { 15 },
    );
    out.count("general.alignment", 32);
}

fn shapes(out: &mut Writer, dims: &Dims) {
    let counts = [
        ("block_count", dims.n_layer),
        ("context_length", dims.ctx),
        ("embedding_length", dims.n_embd),
        ("embedding_length_out", dims.n_embd * dims.n_hc),
        ("vocab_size", dims.n_vocab),
        ("feed_forward_length", dims.n_ff),
        ("attention.head_count", dims.n_head),
        ("attention.head_count_kv", 1),
        ("attention.key_length", dims.head_dim),
        ("attention.value_length", dims.head_dim),
        ("rope.dimension_count", dims.n_rot),
        ("attention.q_lora_rank", dims.q_lora),
        ("attention.output_lora_rank", dims.o_lora),
        ("attention.output_group_count", dims.o_groups),
        ("expert_count", dims.n_expert),
        ("expert_used_count", dims.n_used),
        ("expert_feed_forward_length", dims.n_ff),
        ("expert_shared_count", 1),
        // The square root of softplus.
        ("expert_gating_func", 4),
        ("hash_layer_count", dims.n_hash),
        ("attention.sliding_window", dims.n_swa),
        ("attention.indexer.head_count", dims.ix_heads),
        ("attention.indexer.key_length", dims.ix_dim),
        ("attention.indexer.top_k", dims.ix_topk),
        ("hyper_connection.count", dims.n_hc),
        ("hyper_connection.sinkhorn_iterations", dims.sinkhorn),
        ("rope.scaling.original_context_length", dims.orig_ctx),
    ];
    counts
        .iter()
        .for_each(|(key, value)| out.count(&format!("deepseek4.{key}"), *value));
}

fn constants(out: &mut Writer, dims: &Dims) {
    let floats = [
        ("hyper_connection.epsilon", 1e-6),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("rope.freq_base", 10_000.0),
        ("attention.compress_rope_freq_base", 160_000.0),
        ("rope.scaling.factor", 16.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("expert_weights_scale", dims.w_scale),
    ];
    floats
        .iter()
        .for_each(|(key, value)| out.float(&format!("deepseek4.{key}"), *value));
    out.string("deepseek4.rope.scaling.type", "yarn");
    out.flag("deepseek4.expert_weights_norm", true);
    out.array(
        "deepseek4.attention.compress_ratios",
        I32,
        &dims.ratios,
        |out, ratio| out.number(*ratio),
    );
    let clamps = vec![dims.clamp; dims.n_layer];
    for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"] {
        out.array(&format!("deepseek4.{key}"), F32, &clamps, |out, clamp| {
            out.bytes.extend(clamp.to_le_bytes())
        });
    }
}

fn tokenizer(out: &mut Writer, dims: &Dims) {
    let vocabulary = Vocabulary::new(dims.n_vocab);
    out.string("tokenizer.ggml.model", "gpt2");
    out.string("tokenizer.ggml.pre", "joyai-llm");
    out.array(
        "tokenizer.ggml.tokens",
        STRING,
        &vocabulary.tokens,
        |out, token| out.text(token),
    );
    out.array(
        "tokenizer.ggml.token_type",
        I32,
        &vocabulary.types,
        |out, kind| out.bytes.extend(kind.to_le_bytes()),
    );
    out.array(
        "tokenizer.ggml.merges",
        STRING,
        &vocabulary.merges,
        |out, merge| out.text(merge),
    );
    out.count("tokenizer.ggml.bos_token_id", 0);
    out.count("tokenizer.ggml.eos_token_id", 1);
    out.count("tokenizer.ggml.padding_token_id", 1);
    out.flag("tokenizer.ggml.add_bos_token", false);
    out.flag("tokenizer.ggml.add_eos_token", false);
}
