//! What the kernels of a long pass read and write beside weights and KV: what one writes the next reads, through memory, since that of some hundred tokens is
//! more than a cache holds.

use ds4_gguf::{ModelConfig, TensorInfo};
use ds4_kernels::codec::{INDEXER_BLOCK, indexer_row_bytes, kv_row_bytes};
use ds4_kernels::{Form, Format, Q8_BLOCK, Q8K_BLOCK};

/// Bytes of a number.
const F32: f64 = 4.0;

/// Kernels with the bytes of one token.
pub(crate) type Traffic = Vec<(String, f64)>;

/// Bytes of activations as a format's kernels read them.
fn read_as(format: Format, values: f64) -> f64 {
    match Form::of(format) {
        Form::F32 => F32 * values,
        form => values + F32 * values / block(form),
    }
}

#[allow(clippy::cast_precision_loss)] // 32 or 256
fn block(form: Form) -> f64 {
    if form == Form::Q8 {
        Q8_BLOCK as f64
    } else {
        Q8K_BLOCK as f64
    }
}

/// Bytes in and out of a product, for a token. Gate and up of experts are one kernel, which reads its input once.
#[allow(clippy::cast_precision_loss)] // dimensions
pub(crate) fn product(config: &ModelConfig, tensor: &TensorInfo) -> f64 {
    let (name, cols) = (tensor.name.as_str(), tensor.dims[0] as f64);
    let rows = tensor.dims[1..].iter().product::<u64>() as f64;
    let (used, all) = (config.n_used as f64, config.n_expert as f64);
    let of = |input: f64, output: f64| read_as(tensor.format, input) + F32 * output;
    match name {
        _ if name.contains("ffn_gate_exps") => of(cols, used * rows / all),
        _ if name.contains("ffn_up_exps") => 0.0,
        _ if name.contains("ffn_down_exps") => of(used * cols, used * rows / all),
        // A group of heads goes through its own rows.
        _ if name.contains("attn_output_a") => of(config.o_groups as f64 * cols, rows),
        _ => of(cols, rows),
    }
}

/// Everything else that a layer launches. `format` names a tensor's format.
#[allow(clippy::cast_precision_loss)] // dimensions
pub(crate) fn layer(config: &ModelConfig, layer: usize, format: &dyn Fn(&str) -> Option<Format>) -> Traffic {
    let streams = config.hidden_width() as f64;
    let (embd, mix) = (config.n_embd as f64, config.hc_mix() as f64);
    let (heads, dim, rotary) = (config.n_head as f64, config.head_dim as f64, config.n_rot as f64);
    let (low, used, ff) = (config.q_lora as f64, config.n_used as f64, config.n_ff as f64);
    let row = kv_row_bytes(config.head_dim, config.n_rot) as f64;
    let mut all = vec![
        // Before and after both blocks.
        ("hyper_mix", 2.0 * F32 * (streams + 2.0 * mix)),
        ("gather_streams", 2.0 * F32 * (mix + streams + embd)),
        ("scatter_streams", 2.0 * F32 * (mix + embd + 2.0 * streams)),
        // In place: read and written.
        ("rms_norm", 2.0 * F32 * (2.0 * embd + low + dim)),
        ("norm_rotate_heads", 2.0 * F32 * heads * dim),
        // The tails of a row and of the heads.
        ("rotate_rows", 2.0 * F32 * rotary * (1.0 + heads)),
        ("encode_kv", F32 * dim + row),
        ("attend", 2.0 * F32 * heads * dim),
        ("route", F32 * (2.0 * config.n_expert as f64 + 2.0 * used)),
        ("swiglu", 3.0 * F32 * ff),
        ("combine_experts", F32 * embd * (used + 2.0)),
    ];
    if config.ratios[layer] != 0 {
        all.extend(compressor(config, layer, dim, row, "encode_kv"));
    }
    if config.ratios[layer] == 4 {
        let (count, width) = (config.indexer.heads as f64, config.indexer.dim as f64);
        let stored = indexer_row_bytes(config.indexer.dim) as f64;
        all.extend(compressor(config, layer, width, stored, "encode_indexer"));
        let codes = count * width * (1.0 + F32 / INDEXER_BLOCK as f64);
        all.extend([
            ("rotate_rows", 2.0 * F32 * rotary * count),
            ("index_queries", F32 * count * width + codes),
            ("index_scores", codes + F32 * count),
        ]);
    }
    let mut all: Traffic = all
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect();
    all.extend(quantised(config, layer, format));
    all
}

/// The state of a token, and its share of a row.
#[allow(clippy::cast_precision_loss)] // dimensions
fn compressor(
    config: &ModelConfig,
    layer: usize,
    dim: f64,
    stored: f64,
    encode: &'static str,
) -> [(&'static str, f64); 5] {
    let ratio = f64::from(config.ratios[layer]);
    // Groups of four overlap: a token's state has a half for either.
    let width = if config.ratios[layer] == 4 { 2.0 * dim } else { dim };
    [
        ("append_state", 2.0 * F32 * 2.0 * width),
        ("pool_groups", F32 * (2.0 * width + dim / ratio)),
        ("rms_norm", 2.0 * F32 * dim / ratio),
        ("rotate_rows", 2.0 * F32 * config.n_rot as f64 / ratio),
        (encode, (F32 * dim + stored) / ratio),
    ]
}

/// Inputs that become bytes: once for each form that a matrix asks for.
#[allow(clippy::cast_precision_loss)] // dimensions
fn quantised(config: &ModelConfig, layer: usize, format: &dyn Fn(&str) -> Option<Format>) -> Traffic {
    let inputs: [(f64, &[&str]); 6] = [
        (config.n_embd as f64, &["attn_q_a", "attn_kv"]),
        (config.q_lora as f64, &["attn_q_b", "indexer.attn_q_b"]),
        ((config.n_head * config.head_dim) as f64, &["attn_output_a"]),
        ((config.o_groups * config.o_lora) as f64, &["attn_output_b"]),
        (config.n_embd as f64, &["ffn_gate_exps", "ffn_gate_shexp"]),
        (config.n_ff as f64, &["ffn_down_shexp"]),
    ];
    let routed: (f64, &[&str]) = ((config.n_used * config.n_ff) as f64, &["ffn_down_exps"]);
    let mut all = Traffic::new();
    for (values, matrices) in inputs.into_iter().chain([routed]) {
        let forms = matrices
            .iter()
            .filter_map(|name| format(&format!("blk.{layer}.{name}.weight")))
            .map(Form::of);
        for (form, kernel) in [(Form::Q8, "quantize_q8"), (Form::Q8K, "quantize_q8_k")] {
            if forms.clone().any(|asked| asked == form) {
                all.push((
                    kernel.to_owned(),
                    F32 * values + values + F32 * values / block(form),
                ));
            }
        }
    }
    all
}
