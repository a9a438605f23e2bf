//! A small random model with every kind of layer, and what the tests do with it.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ds4_gguf::tensors::DraftNames;
use ds4_gguf::{Gguf, HyperConfig, IndexerConfig, LayerSpan, ModelConfig, RopeConfig, tensors};
use ds4_kernels::{Backend, Format, dequantize_row};
use ds4_kernels_cpu::Cpu;
use ds4_model::{Graph, Hidden, Kv, KvStaging, ModelSlice, Numerics};

/// With fewer indexer heads, rows whose scores are all cut to zero tie, and engines break ties differently.
/// Four layers: ratio 4 twice, so that one can be handed over and one not, ratio 128, no compression. The window is shorter than every test.
pub fn config() -> ModelConfig {
    ModelConfig {
        name: "test".into(),
        n_layer: 4,
        n_embd: 256,
        n_vocab: 96,
        n_head: 2,
        head_dim: 96,
        n_rot: 32,
        q_lora: 32,
        o_lora: 32,
        o_groups: 2,
        n_expert: 4,
        n_used: 2,
        n_ff: 256,
        n_hash: 1,
        window: 9,
        indexer: IndexerConfig {
            heads: 16,
            dim: 32,
            top_k: 5,
        },
        hc: HyperConfig {
            streams: 4,
            sinkhorn_iterations: 20,
            eps: 1e-6,
        },
        ratios: vec![4, 128, 4, 0],
        clamp: vec![3.0; 4],
        rms_eps: 1e-6,
        rope: RopeConfig {
            base: 10_000.0,
            compress_base: 160_000.0,
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 256,
        },
        expert_scale: 1.5,
        context_length: 4096,
    }
}

/// Token ids that repeat nowhere in order.
pub fn tokens(count: usize) -> Vec<u32> {
    let mut random = Random(7);
    (0..count).map(|_| (random.next() % 96) as u32).collect()
}

/// The model, loaded once per numerics.
pub fn graph(numerics: Numerics) -> Arc<dyn ModelSlice> {
    static CANONICAL: OnceLock<Arc<Graph<Cpu>>> = OnceLock::new();
    static REFERENCE: OnceLock<Arc<Graph<Cpu>>> = OnceLock::new();
    let cell = match numerics {
        Numerics::Canonical => &CANONICAL,
        Numerics::Reference => &REFERENCE,
    };
    cell.get_or_init(|| Arc::new(load(LayerSpan::full(4), numerics)))
        .clone()
}

/// The layers `first..=last` of the model, on two threads.
pub fn load(span: LayerSpan, numerics: Numerics) -> Graph<Cpu> {
    load_on(span, numerics, Cpu::new(Some(2), None).unwrap())
}

/// The same on another back end, from a file of its own.
pub fn load_on<B: Backend>(span: LayerSpan, numerics: Numerics, backend: B) -> Graph<B> {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &config());
    let gguf = Gguf::open(file.path()).unwrap();
    Graph::load(&gguf, span, numerics, backend, &mut |_, _| {}).unwrap()
}

/// The KV of `span` without tokens.
pub fn empty(slice: &dyn ModelSlice, span: LayerSpan) -> Kv {
    Kv::new(&slice.info().layout, span)
}

/// Runs all tokens through the layers of `kvs`, one shard after the other, and returns the last layer's streams.
pub fn run(slice: &dyn ModelSlice, tokens: &[u32], chunk: usize, kvs: &mut [&mut Kv]) -> Hidden {
    let mut values = Vec::new();
    for part in tokens.chunks(chunk) {
        let mut hidden = slice.embed(part).unwrap();
        for kv in kvs.iter_mut() {
            slice.forward(part, &mut hidden, kv).unwrap();
        }
        values.extend_from_slice(hidden.as_slice());
    }
    Hidden::from_vec(slice.info().config.hidden_width(), values).unwrap()
}

/// `count` tokens after the prompt, each the first maximum, with the bits of every logit on the way.
pub fn decode(slice: &dyn ModelSlice, kv: &mut Kv, first: u32, count: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut token, mut tokens, mut bits) = (first, Vec::new(), Vec::new());
    for _ in 0..count {
        let mut hidden = slice.embed(&[token]).unwrap();
        slice.forward(&[token], &mut hidden, kv).unwrap();
        let logits = slice.logits(&hidden, 0).unwrap();
        bits.extend(logits.iter().map(|x| x.to_bits()));
        token = (0..)
            .zip(&logits)
            .fold(
                (0, f32::MIN),
                |best, (i, x)| if *x > best.1 { (i, *x) } else { best },
            )
            .0;
        tokens.push(token);
    }
    (tokens, bits)
}

/// A shard as its receiver builds it, rows in frames of `frame` at most; `change` may spoil a frame.
pub fn transfer(
    kv: &Kv,
    frame: u64,
    mut change: impl FnMut(usize, ds4_model::KvKind, u64, &mut Vec<u8>),
) -> Kv {
    let mut staging = KvStaging::new(kv.layout(), kv.span(), 1 << 20);
    for layer in kv.span().layers() {
        for kind in kv.layout().kinds(layer) {
            let rows = kv.rows(layer, *kind);
            let mut first = rows.start;
            while first < rows.end {
                let end = rows.end.min(first + frame);
                let mut bytes = kv.read(layer, *kind, first..end).unwrap().to_vec();
                change(layer, *kind, first, &mut bytes);
                staging.write(layer, *kind, first, &bytes).unwrap();
                first = end;
            }
        }
    }
    staging.commit(kv.frontier(), kv.hash()).unwrap()
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// How a tensor is stored here: the first format that the graph would find in a published file.
fn format_of(name: &str) -> Format {
    let ends = |ending: &str| name.ends_with(ending);
    if ends("tid2eid.weight") {
        Format::I32
    } else if ends("gate_exps.weight") || ends("up_exps.weight") {
        Format::Iq2Xxs
    } else if ends("down_exps.weight") {
        Format::Q2K
    } else if name == "output.weight"
        || ["attn_q_a.", "attn_q_b.", "attn_kv.", "attn_output", "shexp."]
            .iter()
            .any(|part| name.contains(part))
    {
        Format::Q8_0
    } else if [
        "_fn.",
        "token_embd",
        "compressor_ape",
        "compressor_kv",
        "compressor_gate",
        "indexer.",
        "gate_inp",
    ]
    .iter()
    .any(|part| name.contains(part))
    {
        Format::F16
    } else {
        Format::F32
    }
}

/// The spread that keeps activations of order one.
fn spread(name: &str, cols: usize) -> f32 {
    let gain = match name {
        "output.weight" => 3.0,
        _ if name.contains("exps.") || name.contains("gate_inp") || name.contains("attn_output") => 1.5,
        _ => 1.0,
    };
    gain / (cols as f32).sqrt()
}

fn data(name: &str, dims: &[u64], format: Format) -> Vec<u8> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut random = Random(seed);
    let count: u64 = dims.iter().product();
    let cols = dims[0] as usize;
    match format {
        Format::F32 => {
            let (width, middle) = if name.contains("norm") {
                (0.2, 1.0)
            } else {
                (0.7, if name.contains("scale") { 1.0 } else { 0.0 })
            };
            (0..count)
                .flat_map(|_| (random.uniform() * width + middle).to_le_bytes())
                .collect()
        }
        Format::F16 => {
            let width = if name.contains("token_embd") || name.contains("_ape") {
                1.5
            } else {
                spread(name, cols) * 3.0f32.sqrt()
            };
            (0..count).flat_map(|_| half(random.uniform() * width)).collect()
        }
        // Distinct experts: the second is the first plus one.
        Format::I32 => (0..count / 2)
            .flat_map(|_| {
                let e = (random.next() % 4) as i32;
                [e, (e + 1) % 4]
            })
            .flat_map(i32::to_le_bytes)
            .collect(),
        _ => blocks(
            &mut random,
            count as usize / format.block_len(),
            format,
            spread(name, cols),
        ),
    }
}

/// The rows of the draft head's two matrices, one behind the other.
fn beside(dims: &[u64]) -> Vec<u8> {
    let half = [dims[0] / 2, dims[1]];
    let of = |side: &str| data(&format!("mtp.0.{side}_proj.weight"), &half, Format::F32);
    let row = 4 * half[0] as usize;
    let (token, streams) = (of("e"), of("h"));
    let rows = token.chunks_exact(row).zip(streams.chunks_exact(row));
    rows.flat_map(|(token, streams)| [token, streams].concat())
        .collect()
}

/// Random blocks whose values have the given standard deviation.
fn blocks(random: &mut Random, count: usize, format: Format, deviation: f32) -> Vec<u8> {
    let size = format.block_bytes();
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next() as u8)
        .take(count * size)
        .collect();
    scale(&mut bytes, format, 1.0);
    let mut values = vec![0.0; count * format.block_len()];
    dequantize_row(format, &bytes, &mut values);
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32;
    scale(&mut bytes, format, deviation / variance.sqrt());
    bytes
}

fn scale(bytes: &mut [u8], format: Format, d: f32) {
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        match format {
            Format::Q2K => {
                block[80..82].copy_from_slice(&half(d));
                block[82..84].copy_from_slice(&half(d * 1.5));
            }
            _ => block[..2].copy_from_slice(&half(d)),
        }
    }
}

/// The half nearest to `x` from above or below, for numbers of ordinary size.
fn half(x: f32) -> [u8; 2] {
    if x.abs() < 6.2e-5 {
        return [0, 0];
    }
    let bits = x.to_bits();
    let exponent = ((bits >> 23 & 0xff) as i32 - 112) as u16;
    ((bits >> 31 << 15) as u16 | exponent << 10 | (bits >> 13 & 0x3ff) as u16).to_le_bytes()
}

/// Writes the model as a GGUF v3 file.
pub fn write(path: &Path, config: &ModelConfig) {
    let wanted = tensors::expected(config, LayerSpan::full(config.n_layer));
    write_tensors(path, &wanted, &metadata(config));
}

/// Writes the draft head of such a model as a file of its own. Its layer is a copy of the model's last one, and so is its way to the output matrix.
pub fn write_draft(path: &Path, config: &ModelConfig) {
    write_tensors(path, &tensors::draft(config, DraftNames::Mtp), &[]);
}

/// The tensor whose bytes a tensor of the draft head has: the same ones under either of its names.
fn twin(name: &str) -> String {
    let Some(part) = name
        .strip_prefix("mtp.0.")
        .or_else(|| name.strip_prefix("blk.4."))
    else {
        return name.into();
    };
    let part = match part.strip_prefix("nextn.") {
        Some("shared_head_norm.weight") => "norm.weight",
        Some(part) => part,
        None => part,
    };
    if let Some(part) = part.strip_prefix("hc_head_") {
        return format!("output_hc_{part}");
    }
    match part {
        "norm.weight" => "output_norm.weight".into(),
        "enorm.weight" | "hnorm.weight" | "e_proj.weight" | "h_proj.weight" | "eh_proj.weight" => {
            format!("mtp.0.{part}")
        }
        part => format!("blk.3.{part}"),
    }
}

/// Writes tensors and metadata as a GGUF v3 file.
pub fn write_tensors(path: &Path, wanted: &[tensors::Expected], metadata: &[Vec<u8>]) {
    let mut file = Vec::new();
    file.extend(b"GGUF");
    file.extend(3u32.to_le_bytes());
    file.extend((wanted.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    metadata.iter().for_each(|entry| file.extend(entry));
    let (mut offset, mut all) = (0u64, Vec::new());
    for tensor in wanted {
        let name = twin(&tensor.name);
        let format = format_of(&name);
        let bytes = if name == "mtp.0.eh_proj.weight" {
            beside(&tensor.dims)
        } else {
            data(&name, &tensor.dims, format)
        };
        file.extend(text(&tensor.name));
        file.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(format.gguf_id().to_le_bytes());
        file.extend(offset.to_le_bytes());
        all.extend(&bytes);
        all.resize(all.len().next_multiple_of(32), 0);
        offset = all.len() as u64;
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(all);
    std::fs::File::create(path).unwrap().write_all(&file).unwrap();
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Key, type (4 u32, 6 f32, 7 bool, 8 string, 9 array) and value.
pub fn metadata(config: &ModelConfig) -> Vec<Vec<u8>> {
    let entry =
        |key: &str, kind: u32, value: Vec<u8>| [text(key), kind.to_le_bytes().to_vec(), value].concat();
    let number = |key: &str, value: usize| {
        entry(
            &format!("deepseek4.{key}"),
            4,
            (value as u32).to_le_bytes().to_vec(),
        )
    };
    let float = |key: &str, value: f32| entry(&format!("deepseek4.{key}"), 6, value.to_le_bytes().to_vec());
    let array = |key: &str, kind: u32, values: Vec<[u8; 4]>| {
        let value = [
            kind.to_le_bytes().to_vec(),
            (values.len() as u64).to_le_bytes().to_vec(),
            values.concat(),
        ]
        .concat();
        entry(&format!("deepseek4.{key}"), 9, value)
    };
    let ModelConfig {
        rope, indexer, hc, ..
    } = config;
    vec![
        entry("general.architecture", 8, text("deepseek4")),
        entry("deepseek4.expert_weights_norm", 7, vec![1]),
        number("block_count", config.n_layer),
        number("embedding_length", config.n_embd),
        number("vocab_size", config.n_vocab),
        number("attention.head_count", config.n_head),
        number("attention.head_count_kv", 1),
        number("attention.key_length", config.head_dim),
        number("attention.value_length", config.head_dim),
        number("rope.dimension_count", config.n_rot),
        number("attention.q_lora_rank", config.q_lora),
        number("attention.output_lora_rank", config.o_lora),
        number("attention.output_group_count", config.o_groups),
        number("expert_count", config.n_expert),
        number("expert_used_count", config.n_used),
        number("expert_feed_forward_length", config.n_ff),
        number("expert_shared_count", 1),
        number("hash_layer_count", config.n_hash),
        number("attention.sliding_window", config.window),
        number("attention.indexer.head_count", indexer.heads),
        number("attention.indexer.key_length", indexer.dim),
        number("attention.indexer.top_k", indexer.top_k),
        number("hyper_connection.count", hc.streams),
        number("hyper_connection.sinkhorn_iterations", hc.sinkhorn_iterations),
        float("hyper_connection.epsilon", hc.eps),
        float("attention.layer_norm_rms_epsilon", config.rms_eps),
        float("rope.freq_base", rope.base),
        float("attention.compress_rope_freq_base", rope.compress_base),
        float("rope.scaling.factor", rope.factor),
        float("rope.scaling.yarn_beta_fast", rope.beta_fast),
        float("rope.scaling.yarn_beta_slow", rope.beta_slow),
        number("rope.scaling.original_context_length", rope.original_context),
        float("expert_weights_scale", config.expert_scale),
        number("context_length", config.context_length),
        array(
            "attention.compress_ratios",
            4,
            config.ratios.iter().map(|ratio| ratio.to_le_bytes()).collect(),
        ),
        array(
            "swiglu_clamp_exp",
            6,
            config.clamp.iter().map(|clamp| clamp.to_le_bytes()).collect(),
        ),
    ]
}
