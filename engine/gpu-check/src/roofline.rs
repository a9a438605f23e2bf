//! What bandwidth and arithmetic allow on paper for the published Flash file with two-bit experts, kernel by kernel.
//!
//! Shapes and bytes are those that this project's own reader finds in a file with the header of that model ([`ds4_synth::outline`]); what a token
//! touches of the KV is the layout's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig, TensorInfo, tensors};
use ds4_kernels::Format;
use ds4_kernels::codec::{indexer_row_bytes, kv_row_bytes};
use ds4_model_cuda::CudaSlice;
use ds4_synth::Dims;

use crate::{activations, table};

/// A machine's limits.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Bytes per second.
    bandwidth: f64,
    /// Dense products of bytes per second on tensor cores, multiplications and additions counted.
    bytes: f64,
    /// The same of `f32` outside of them.
    floats: f64,
}

/// GB10: 273 GB/s, 1 petaflop of sparse FP4 and 6,144 cores (NVIDIA's page of the DGX Spark); dense products of bytes and `f32` are not published there: a
/// quarter of the petaflop is taken, and two operations a clock of each core at 2.5 GHz. H100 SXM: 3.35 TB/s, 1,979 tera-operations on bytes without
/// sparsity, 67 on `f32` (NVIDIA's data sheet).
const MACHINES: [Machine; 2] = [
    Machine {
        bandwidth: 273e9,
        bytes: 250e12,
        floats: 31e12,
    },
    Machine {
        bandwidth: 3.35e12,
        bytes: 1_979e12,
        floats: 67e12,
    },
];

/// ds4's published rates of the same file on GB10: context, then prefill and decode in tokens per second at the time of the pull request, and later.
const PUBLISHED: [(u64, [f64; 4]); 4] = [
    (2048, [402.9, 14.20, 832.9, 20.58]),
    (16_384, [375.5, 13.84, 883.8, 16.80]),
    (32_768, [346.4, 12.98, 865.4, 15.99]),
    (65_536, [287.4, 12.08, 833.4, 15.27]),
];

/// Tokens of a chunk.
const CHUNK: u64 = 4096;

/// Those that go through the layers together.
const PASS: u64 = CudaSlice::PASS as u64;

/// What a kernel reads and computes.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    bytes: f64,
    operations: f64,
}

impl Work {
    fn add(&mut self, bytes: f64, operations: f64) {
        self.bytes += bytes;
        self.operations += operations;
    }
}

/// The model: config and tensors, checked.
struct Model {
    config: ModelConfig,
    tensors: Vec<TensorInfo>,
    bytes: u64,
}

impl Model {
    fn flash() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("flash.gguf");
        ds4_synth::outline(&path, &Dims::flash())?;
        Self::open(&path)
    }

    fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path).with_context(|| path.display().to_string())?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let found = tensors::check(&gguf, &config, LayerSpan::full(config.n_layer))?;
        let tensors: Vec<TensorInfo> = found.into_iter().cloned().collect();
        Ok(Self {
            bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            config,
            tensors,
        })
    }

    /// Kernels with their work for `tokens` tokens that end at `context`, `pass` of them at a time: weights and KV are read once in a pass.
    #[allow(clippy::cast_precision_loss)] // bytes and operations
    fn work(&self, context: u64, tokens: u64, pass: u64) -> BTreeMap<String, Work> {
        let (many, passes) = (tokens > 1, tokens.div_ceil(pass) as f64);
        let mut all = BTreeMap::<String, Work>::new();
        for tensor in &self.tensors {
            let Some(part) = self.product(tensor, many) else {
                continue;
            };
            let values = tensor.dims.iter().product::<u64>() as f64;
            let read = if part.once { part.read } else { part.read * passes };
            let used = if part.once { 1.0 } else { tokens as f64 };
            let work = all.entry(part.kernel).or_default();
            work.add(tensor.bytes as f64 * read, 2.0 * values * part.used * used);
            if many {
                work.add(activations::product(&self.config, tensor) * used, 0.0);
            }
        }
        let first = context.saturating_sub(tokens);
        for layer in 0..self.config.n_layer {
            for from in (first..context).step_by(usize::try_from(pass).unwrap_or(usize::MAX)) {
                self.attention(&mut all, layer, from..context.min(from + pass));
            }
            if many {
                for (kernel, bytes) in activations::layer(&self.config, layer, &|name| self.format(name)) {
                    all.entry(kernel).or_default().add(bytes * tokens as f64, 0.0);
                }
            }
        }
        all
    }

    fn format(&self, name: &str) -> Option<Format> {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        found.map(|tensor| tensor.format)
    }

    /// Which kernel multiplies with a tensor; norms, biases and tables are small and are left out.
    fn product(&self, tensor: &TensorInfo, prefill: bool) -> Option<Product> {
        let name = tensor.name.as_str();
        let small = tensor.dims.len() < 2 || name.contains("_ape") || name.contains("tid2eid");
        if small || name == "token_embd.weight" {
            return None;
        }
        let format = tensor.format.name().to_lowercase();
        #[allow(clippy::cast_precision_loss)] // experts
        let share = self.config.n_used as f64 / self.config.n_expert as f64;
        let many = if prefill { "tiles" } else { "one" };
        let whole = |kernel: String| Product {
            kernel,
            read: 1.0,
            used: 1.0,
            once: false,
        };
        Some(match name {
            _ if name.contains("_exps.") => Product {
                kernel: format!(
                    "{}_{format}_{many}",
                    if name.contains("down") { "down" } else { "gate_up" }
                ),
                // A pass has so many tokens that every expert is read.
                read: if prefill { 1.0 } else { share },
                used: share,
                once: false,
            },
            _ if name.contains("attn_output_a") => whole(format!("down_{format}_{many}")),
            // Logits are needed once in a chunk.
            "output.weight" if prefill => Product {
                once: true,
                ..whole(format!("matvec_{format}"))
            },
            _ if !prefill => whole(format!("matvec_{format}")),
            _ if matches!(tensor.format, Format::F32 | Format::F16) => whole(format!("matmul_{format}")),
            _ => whole(format!("tiles_{format}")),
        })
    }

    /// Attention of a layer, and the indexer's scores where it has one. The tokens of a pass share the rows that are read.
    #[allow(clippy::cast_precision_loss)] // rows and operations
    fn attention(&self, all: &mut BTreeMap<String, Work>, layer: usize, positions: std::ops::Range<u64>) {
        let config = &self.config;
        let (ratio, window) = (u64::from(config.ratios[layer]), config.window as u64);
        let (dim, heads) = (config.head_dim as f64, config.n_head as f64);
        let rows_of = |position: u64| (position + 1).checked_div(ratio).unwrap_or(0);
        let picked = |position: u64| {
            let rows = rows_of(position);
            if ratio == 4 {
                rows.min(config.indexer.top_k as u64)
            } else {
                rows
            }
        };
        let near = |position: u64| (position + 1).min(window);
        let seen: u64 = positions.clone().map(|at| near(at) + picked(at)).sum();
        let last = positions.end - 1;
        let shared = if positions.clone().count() == 1 {
            picked(last)
        } else {
            rows_of(last)
        };
        let window_rows = near(last) + (positions.end - positions.start - 1);
        let row = kv_row_bytes(config.head_dim, config.n_rot) as f64;
        let work = all.entry("attend".into()).or_default();
        work.add(
            (shared + window_rows) as f64 * row,
            4.0 * seen as f64 * heads * dim,
        );
        if ratio == 4 && rows_of(last) > config.indexer.top_k as u64 {
            let (count, scored) = (
                last + 1 - positions.start,
                positions.map(rows_of).sum::<u64>() as f64,
            );
            let width = config.indexer.dim as f64 * config.indexer.heads as f64;
            let bytes = rows_of(last) as f64 * indexer_row_bytes(config.indexer.dim) as f64;
            let work = all.entry("index_scores".into()).or_default();
            work.add(bytes, 2.0 * scored * width);
            if count > 1 {
                // Scores are written, and read to choose; what was chosen is read by attention.
                let chosen = 4.0 * (count * config.indexer.top_k as u64) as f64;
                work.add(4.0 * scored, 0.0);
                all.entry("pick_rows".into())
                    .or_default()
                    .add(4.0 * scored + chosen, 0.0);
                all.entry("attend".into()).or_default().add(chosen, 0.0);
            }
        }
    }
}

/// How a tensor takes part.
struct Product {
    kernel: String,
    /// Share of its bytes that is read.
    read: f64,
    /// Share of its values that a token multiplies with.
    used: f64,
    /// For the last token alone.
    once: bool,
}

fn total(work: &BTreeMap<String, Work>) -> Work {
    let mut sum = Work::default();
    work.values()
        .for_each(|part| sum.add(part.bytes, part.operations));
    sum
}

impl Machine {
    /// Seconds at least: every kernel by the tighter of its two limits.
    fn seconds(&self, work: &BTreeMap<String, Work>) -> f64 {
        work.iter().map(|(kernel, part)| self.of(kernel, part)).sum()
    }

    fn of(&self, kernel: &str, part: &Work) -> f64 {
        f64::max(part.bytes / self.bandwidth, part.operations / self.rate(kernel))
    }

    /// Operations per second of what a kernel computes with.
    fn rate(&self, kernel: &str) -> f64 {
        if kernel.contains("tiles") {
            self.bytes
        } else if kernel == "attend" || kernel.ends_with("_f16") || kernel.ends_with("_f32") {
            self.floats
        } else {
            // Four products of bytes in the place of one of `f32` (`__dp4a`).
            4.0 * self.floats
        }
    }
}

/// The document.
///
/// # Errors
/// When the outline of the model cannot be written or read.
pub fn document() -> Result<String> {
    let model = Model::flash()?;
    let mut text = format!(
        "# What bandwidth and arithmetic allow\n\n\
         Written by `cargo xtask roofline`, from the layout of the published Flash file with two-bit experts as this project's reader finds it: {} layers, {} \
         tensors, {} bytes of weights. On paper: no GPU was measured. A kernel takes at least its bytes over the memory's bandwidth and at least its operations \
         over the rate of what it computes with; a multiplication and an addition are two operations. Every kernel reads its operands and writes its results \
         once. In prefill what one kernel writes the next one reads, through memory; {PASS} tokens go through the layers together, so a chunk of 4096 reads the \
         weights {} times. What a single token's kernels hand over stays in the cache and is left out, as are operations of kernels that multiply no matrix, copies of rows, and launches.\n\n\
         Limits taken: GB10 273 GB/s, 250 T operations/s on bytes in tensor cores (assumed: a quarter of the published petaflop of sparse FP4), 31 T on f32 \
         (assumed: 6,144 cores at 2.5 GHz); H100 SXM 3.35 TB/s, 1,979 T and 67 T (NVIDIA's data sheet, without sparsity). Kernels named tiles multiply on tensor \
         cores; attend and those on f16 weights in f32, whose order of additions is fixed; the others four bytes at a time outside of tensor cores.\n",
        model.config.n_layer,
        model.tensors.len(),
        model.bytes,
        CHUNK / PASS,
    );
    for (title, tokens, pass) in [
        ("Decode: one token", 1, 1),
        ("Prefill: a chunk of 4096 tokens", CHUNK, PASS),
    ] {
        for context in [8192, 65_536] {
            let work = model.work(context, tokens, pass);
            text += &format!("\n## {title}, context {context}\n\n");
            text += &by_kernel(&work);
        }
    }
    text += &ceilings(&model);
    text += &passes(&model);
    Ok(text)
}

/// What the number of tokens that go through the layers together decides.
#[allow(clippy::cast_precision_loss)] // tokens
fn passes(model: &Model) -> String {
    let rows: Vec<Vec<String>> = [PASS, 1024, 2048, CHUNK]
        .into_iter()
        .map(|pass| {
            let rates = [8192, 65_536].map(|context| {
                let work = model.work(context, CHUNK, pass);
                MACHINES.map(|machine| format!("{:.0}", CHUNK as f64 / machine.seconds(&work)))
            });
            let [[gb10, h100], [gb10_far, h100_far]] = rates;
            vec![pass.to_string(), gb10, gb10_far, h100, h100_far]
        })
        .collect();
    let columns = [
        "tokens of a pass",
        "GB10, context 8192",
        "GB10, context 65536",
        "H100 SXM, context 8192",
        "H100 SXM, context 65536",
    ];
    format!(
        "\n## Prefill by the length of a pass\n\nCeilings of a chunk of 4096, in tokens per second. More tokens in a pass read the weights less often and take more scratch memory; the \
         bits are the same. {PASS} is what the engine does.\n\n{}",
        table(&columns, &rows)
    )
}

fn by_kernel(work: &BTreeMap<String, Work>) -> String {
    let row = |name: &str, part: &Work, [gb10, h100]: [f64; 2]| {
        vec![
            name.to_owned(),
            format!("{:.1}", part.bytes / 1e6),
            format!("{:.2}", part.operations / 1e9),
            format!("{:.3}", gb10 * 1e3),
            format!("{:.3}", h100 * 1e3),
        ]
    };
    let mut rows: Vec<Vec<String>> = work
        .iter()
        .map(|(name, part)| {
            row(
                &format!("`{name}`"),
                part,
                MACHINES.map(|machine| machine.of(name, part)),
            )
        })
        .collect();
    let sum = total(work);
    rows.push(row("all", &sum, MACHINES.map(|machine| machine.seconds(work))));
    table(
        &["kernel", "MB", "G operations", "ms on GB10", "ms on H100 SXM"],
        &rows,
    )
}

#[allow(clippy::cast_precision_loss)] // tokens
fn ceilings(model: &Model) -> String {
    let mut rows = Vec::new();
    for (context, published) in PUBLISHED {
        for (what, tokens, pass, [first, later]) in [
            ("prefill", CHUNK, PASS, [published[0], published[2]]),
            ("decode", 1, 1, [published[1], published[3]]),
        ] {
            // The first chunk is as long as the context where that is shorter.
            let at = context.max(tokens);
            let work = model.work(at, tokens, pass);
            let [gb10, h100] = MACHINES.map(|machine| tokens as f64 / machine.seconds(&work));
            rows.push(vec![
                what.to_owned(),
                at.to_string(),
                format!("{gb10:.1}"),
                format!("{first} ({:.0} %)", first / gb10 * 100.0),
                format!("{later} ({:.0} %)", later / gb10 * 100.0),
                format!("{h100:.1}"),
            ]);
        }
    }
    let columns = [
        "",
        "context",
        "ceiling on GB10, tokens/s",
        "ds4 on GB10, published June 2026",
        "ds4 on GB10, published later",
        "ceiling on H100 SXM, tokens/s",
    ];
    format!(
        "\n## Ceilings, and what ds4 has published\n\nIn tokens per second; in brackets the share of the ceiling, which is that of this project's kernels in passes of {PASS}. ds4 publishes no figures for an H100. Figures for 2048 tokens stand beside \
         the ceiling of a whole chunk.\n\n{}",
        table(&columns, &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_code_gives() {
        let found = include_str!("../../../docs/gpu/roofline.md");
        let text = document().expect("an outline");
        assert!(found == text, "docs/gpu/roofline.md: run `cargo xtask roofline`");
    }

    /// ds4 publishes 80.76 GiB for this file.
    #[test]
    fn the_layout_has_the_published_size() {
        let model = Model::flash().expect("an outline");
        let gib = model.bytes as f64 / f64::from(1 << 30);
        assert!((80.755..80.765).contains(&gib), "{gib} GiB of tensors");
    }

    /// 13 billion weights take part in a token's products, by the model's description; embedding rows and attention are beside them.
    #[test]
    fn a_decoded_token_multiplies_with_thirteen_billion_weights_in_nine_gigabytes() {
        let model = Model::flash().expect("an outline");
        let mut work = model.work(1, 1, 1);
        work.retain(|kernel, _| kernel != "attend");
        let sum = total(&work);
        assert!((12.0e9..14.0e9).contains(&(sum.operations / 2.0)), "{sum:?}");
        let gib = sum.bytes / f64::from(1 << 30);
        assert!((8.5..9.3).contains(&gib), "{gib} GiB");
    }

    #[test]
    fn a_longer_context_costs_more_and_a_chunk_costs_less_than_its_tokens_one_by_one() {
        let model = Model::flash().expect("an outline");
        for machine in MACHINES {
            let one = |context| machine.seconds(&model.work(context, 1, 1));
            assert!(one(65_536) > one(8192), "{machine:?}");
            let chunk = machine.seconds(&model.work(8192, CHUNK, PASS));
            assert!(
                chunk < CHUNK as f64 * one(8192) && chunk > one(8192),
                "{machine:?}"
            );
        }
    }

    #[test]
    fn every_kernel_is_one_that_the_host_launches() {
        let model = Model::flash().expect("an outline");
        let launched = |name: &str| ds4_kernels_cuda::TABLE.iter().any(|kernel| kernel.name == name);
        for tokens in [1, CHUNK] {
            for kernel in model.work(65_536, tokens, tokens).keys() {
                assert!(launched(kernel), "{kernel}");
            }
        }
    }

    /// By hand: 4096 values in 4 streams, 24 numbers of a mix; 64 heads of 512 values; 6 experts of 2048 values; 43 layers.
    #[test]
    fn what_the_largest_kernels_of_a_pass_hand_over_is_what_it_is_by_hand() {
        let model = Model::flash().expect("an outline");
        let work = model.work(8192, CHUNK, CHUNK);
        let per_token = |kernel: &str| work[kernel].bytes / CHUNK as f64 / 43.0;
        let scatter = 2 * 4 * (24 + 4096 + 2 * 16_384);
        assert!((per_token("scatter_streams") - f64::from(scatter)).abs() < 1e-6);
        let heads = 2 * 4 * 64 * 512;
        assert!((per_token("norm_rotate_heads") - f64::from(heads)).abs() < 1e-6);
        assert!((per_token("combine_experts") - f64::from(4 * 4096 * 8)).abs() < 1e-6);
        assert!(per_token("attend") > f64::from(heads));
        // Weights of the gates and ups once, a token's codes and what six experts make of them.
        let experts = 47_613.7e6 / f64::from(43 * 4096) + f64::from(4096 + 4 * 4096 / 256 + 6 * 2048 * 4);
        assert!((per_token("gate_up_iq2_xxs_tiles") / experts - 1.0).abs() < 1e-4);
    }

    #[test]
    fn shorter_passes_read_the_weights_more_often_and_nothing_else() {
        let model = Model::flash().expect("an outline");
        let bytes = |pass, kernel: &str| model.work(8192, CHUNK, pass)[kernel].bytes;
        let once = bytes(CHUNK, "gate_up_iq2_xxs_tiles");
        let (eight, weights) = (bytes(512, "gate_up_iq2_xxs_tiles"), 47_613.7e6);
        assert!(((eight - once) / (7.0 * weights) - 1.0).abs() < 1e-4);
        assert!((bytes(512, "scatter_streams") - bytes(CHUNK, "scatter_streams")).abs() < 1.0);
    }
}
