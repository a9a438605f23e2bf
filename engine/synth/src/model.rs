//! The tensors of a model with the spreads that keep it well conditioned (logits with a standard deviation of about 3).

use ds4_kernels::Format;

use crate::Dims;
use crate::tensor::{Draw, Tensor};

struct List(Vec<Tensor>);

#[allow(clippy::cast_precision_loss)] // dimensions
impl List {
    fn vector(&mut self, name: String, n: usize, spread: f64, offset: f64) {
        self.0.push(Tensor {
            name,
            dims: vec![n],
            format: Format::F32,
            draw: Draw::Uniform { spread, offset },
        });
    }

    fn half(&mut self, name: String, rows: usize, cols: usize, spread: f64) {
        let draw = Draw::Uniform { spread, offset: 0.0 };
        self.0.push(Tensor {
            name,
            dims: vec![cols, rows],
            format: Format::F16,
            draw,
        });
    }

    /// `F16` with standard deviation `gain / sqrt(cols)`.
    fn plain(&mut self, name: String, rows: usize, cols: usize, gain: f64) {
        self.half(name, rows, cols, gain * (3.0 / cols as f64).sqrt());
    }

    /// `Q8_0` with standard deviation `gain / sqrt(cols)`.
    fn dense(&mut self, name: String, rows: usize, cols: usize, gain: f64) {
        let draw = Draw::Blocks {
            std: gain / (cols as f64).sqrt(),
        };
        self.0.push(Tensor {
            name,
            dims: vec![cols, rows],
            format: Format::Q8_0,
            draw,
        });
    }

    fn experts(&mut self, name: String, dims: [usize; 3], format: Format) {
        let draw = Draw::Blocks {
            std: 1.5 / (dims[0] as f64).sqrt(),
        };
        self.0.push(Tensor {
            name,
            dims: dims.to_vec(),
            format,
            draw,
        });
    }
}

/// All tensors, in file order.
pub(crate) fn tensors(dims: &Dims) -> Vec<Tensor> {
    let mut list = List(Vec::new());
    let width = dims.n_embd * dims.n_hc;
    list.half("token_embd.weight".into(), dims.n_vocab, dims.n_embd, 1.7);
    list.vector("output_hc_base.weight".into(), dims.n_hc, 0.5, 0.0);
    list.plain("output_hc_fn.weight".into(), dims.n_hc, width, 1.0);
    list.vector("output_hc_scale.weight".into(), 1, 0.2, 1.0);
    list.vector("output_norm.weight".into(), dims.n_embd, 0.2, 1.0);
    list.dense("output.weight".into(), dims.n_vocab, dims.n_embd, 3.0);
    for layer in 0..dims.n_layer {
        let prefix = format!("blk.{layer}");
        hyper(&mut list, dims, &prefix);
        attention(&mut list, dims, &prefix);
        compressor(&mut list, dims, layer);
        feed_forward(&mut list, dims, &prefix, layer < dims.n_hash);
    }
    if dims.mtp {
        draft(&mut list, dims);
    }
    list.0
}

/// The draft head. Its two inputs are joined with equal weight; what comes of random weights agrees with the model by chance alone.
fn draft(list: &mut List, dims: &Dims) {
    let name = |part: &str| format!("mtp.0.{part}.weight");
    for side in ["e", "h"] {
        list.vector(name(&format!("{side}norm")), dims.n_embd, 0.2, 1.0);
        list.dense(name(&format!("{side}_proj")), dims.n_embd, dims.n_embd, 1.0);
    }
    hyper(list, dims, "mtp.0");
    attention(list, dims, "mtp.0");
    feed_forward(list, dims, "mtp.0", false);
    list.vector(name("hc_head_base"), dims.n_hc, 0.5, 0.0);
    list.plain(name("hc_head_fn"), dims.n_hc, dims.n_embd * dims.n_hc, 1.0);
    list.vector(name("hc_head_scale"), 1, 0.2, 1.0);
    list.vector(name("norm"), dims.n_embd, 0.2, 1.0);
}

fn hyper(list: &mut List, dims: &Dims, prefix: &str) {
    let mix = (2 + dims.n_hc) * dims.n_hc;
    for block in ["attn", "ffn"] {
        list.plain(
            format!("{prefix}.hc_{block}_fn.weight"),
            mix,
            dims.n_embd * dims.n_hc,
            1.0,
        );
        list.vector(format!("{prefix}.hc_{block}_scale.weight"), 3, 0.3, 1.0);
        list.vector(format!("{prefix}.hc_{block}_base.weight"), mix, 0.7, 0.0);
    }
}

fn attention(list: &mut List, dims: &Dims, prefix: &str) {
    let name = |part: &str| format!("{prefix}.{part}.weight");
    let heads = dims.n_head * dims.head_dim;
    let low = dims.o_groups * dims.o_lora;
    list.vector(name("attn_norm"), dims.n_embd, 0.2, 1.0);
    list.dense(name("attn_q_a"), dims.q_lora, dims.n_embd, 1.0);
    list.vector(name("attn_q_a_norm"), dims.q_lora, 0.2, 1.0);
    list.dense(name("attn_q_b"), heads, dims.q_lora, 1.0);
    list.dense(name("attn_kv"), dims.head_dim, dims.n_embd, 1.0);
    list.vector(name("attn_kv_a_norm"), dims.head_dim, 0.2, 1.3);
    list.vector(name("attn_sinks"), dims.n_head, 1.5, 0.0);
    list.dense(name("attn_output_a"), low, heads / dims.o_groups, 2.0);
    list.dense(name("attn_output_b"), dims.n_embd, low, 1.5);
}

fn compressor(list: &mut List, dims: &Dims, layer: usize) {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let ratio = dims.ratios[layer] as usize;
    if ratio == 0 {
        return;
    }
    let width = if ratio == 4 {
        2 * dims.head_dim
    } else {
        dims.head_dim
    };
    list.half(name("attn_compressor_ape"), ratio, width, 1.0);
    list.plain(name("attn_compressor_kv"), width, dims.n_embd, 1.0);
    list.plain(name("attn_compressor_gate"), width, dims.n_embd, 1.0);
    list.vector(name("attn_compressor_norm"), dims.head_dim, 0.2, 1.3);
    if ratio != 4 {
        return;
    }
    let (heads, dim) = (dims.ix_heads, dims.ix_dim);
    if dims.ixq8 {
        list.dense(name("indexer.attn_q_b"), heads * dim, dims.q_lora, 1.0);
    } else {
        list.plain(name("indexer.attn_q_b"), heads * dim, dims.q_lora, 1.0);
    }
    list.plain(name("indexer.proj"), heads, dims.n_embd, 1.0);
    list.half(name("indexer_compressor_ape"), ratio, 2 * dim, 1.0);
    list.plain(name("indexer_compressor_kv"), 2 * dim, dims.n_embd, 1.0);
    list.plain(name("indexer_compressor_gate"), 2 * dim, dims.n_embd, 1.0);
    list.vector(name("indexer_compressor_norm"), dim, 0.2, 1.0);
}

fn feed_forward(list: &mut List, dims: &Dims, prefix: &str, hashed: bool) {
    let name = |part: &str| format!("{prefix}.{part}");
    let (embd, ff, count) = (dims.n_embd, dims.n_ff, dims.n_expert);
    let (gate_up, down) = dims.experts.formats();
    list.vector(name("ffn_norm.weight"), embd, 0.2, 1.0);
    list.plain(name("ffn_gate_inp.weight"), count, embd, 1.5);
    if hashed {
        let draw = Draw::Experts {
            used: dims.n_used,
            count: count as u64,
        };
        let table = vec![dims.n_used, dims.n_vocab];
        list.0.push(Tensor {
            name: name("ffn_gate_tid2eid.weight"),
            dims: table,
            format: Format::I32,
            draw,
        });
    } else {
        list.vector(name("exp_probs_b.bias"), count, 0.3, 0.0);
    }
    list.experts(name("ffn_gate_exps.weight"), [embd, ff, count], gate_up);
    list.experts(name("ffn_up_exps.weight"), [embd, ff, count], gate_up);
    list.experts(name("ffn_down_exps.weight"), [ff, embd, count], down);
    list.dense(name("ffn_gate_shexp.weight"), ff, embd, 1.5);
    list.dense(name("ffn_up_shexp.weight"), ff, embd, 1.5);
    list.dense(name("ffn_down_shexp.weight"), embd, ff, 1.0);
}
