//! One result, whatever computes it: models of several shapes over splits, chunks, batches, threads and instructions.

use std::path::Path;

use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_kernels_cpu::{Cpu, Level};
use ds4_model::{CompleteKv, Graph, Hidden, Kv, ModelSlice, Numerics, Part};
use ds4_synth::{Dims, Preset};

use crate::support::{config, empty, run, write};

/// Past a group of 128, and many more rows than any of the models' indexers keep.
const LENGTH: usize = 150;

/// Two presets, and a shape whose heads, ranks and widths are multiples of little.
fn models(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut paths = Vec::new();
    for (name, preset) in [("micro", Preset::Micro), ("tiny", Preset::Tiny)] {
        let path = folder.join(format!("{name}.gguf"));
        ds4_synth::write(&path, &Dims::preset(preset), &mut |_, _| {}).unwrap();
        paths.push(path);
    }
    let mut odd = config();
    (odd.n_head, odd.head_dim, odd.q_lora, odd.o_lora) = (6, 160, 96, 64);
    (odd.n_embd, odd.n_expert, odd.n_used, odd.window) = (512, 6, 3, 23);
    (odd.indexer.heads, odd.indexer.dim) = (20, 64);
    odd.ratios = vec![4, 0, 128, 4];
    paths.push(folder.join("odd.gguf"));
    write(paths.last().unwrap(), &odd);
    paths
}

fn tokens(config: &ModelConfig, seed: usize) -> Vec<u32> {
    (0..LENGTH)
        .map(|i| ((i * i * 31 + i * 7 + seed * 13) % config.n_vocab) as u32)
        .collect()
}

fn load(path: &Path, span: LayerSpan, threads: usize, level: Level) -> Graph<Cpu> {
    let gguf = Gguf::open(path).unwrap();
    let cpu = Cpu::new(Some(threads), Some(level)).unwrap();
    Graph::load(&gguf, span, Numerics::Canonical, cpu, &mut |_, _| {}).unwrap()
}

fn full(slice: &dyn ModelSlice) -> LayerSpan {
    LayerSpan::full(slice.info().config.n_layer)
}

/// The logits' bits at every tenth position and the last.
fn bits(slice: &dyn ModelSlice, hidden: &Hidden) -> Vec<u32> {
    let mut at: Vec<usize> = (0..hidden.tokens()).step_by(10).collect();
    at.push(hidden.tokens() - 1);
    slice
        .logits_batch(hidden, &at)
        .unwrap()
        .iter()
        .map(|x| x.to_bits())
        .collect()
}

/// Prefilled in chunks, the layers cut after `cut` where there is one.
fn prefill(slice: &dyn ModelSlice, tokens: &[u32], chunk: usize, cut: Option<usize>) -> (Vec<u32>, Kv) {
    let all = full(slice);
    let spans = match cut {
        Some(cut) => vec![
            LayerSpan {
                last: cut,
                head: false,
                ..all
            },
            LayerSpan {
                first: cut + 1,
                ..all
            },
        ],
        None => vec![all],
    };
    let mut kvs: Vec<Kv> = spans.iter().map(|span| empty(slice, *span)).collect();
    let hidden = run(slice, tokens, chunk, &mut kvs.iter_mut().collect::<Vec<_>>());
    let complete = CompleteKv::assemble(&slice.info().layout, kvs).unwrap();
    (bits(slice, &hidden), complete.kv().clone())
}

/// Some sessions' next tokens, together or each alone.
fn decode(slice: &dyn ModelSlice, kvs: &mut [Kv], together: bool) -> Vec<u32> {
    let next: Vec<[u32; 1]> = (0..kvs.len() as u32).map(|i| [3 + 5 * i]).collect();
    let mut bits = Vec::new();
    for _ in 0..2 {
        let step = if together { kvs.len() } else { 1 };
        for (tokens, kvs) in next.chunks(step).zip(kvs.chunks_mut(step)) {
            let mut hidden = slice.embed(&tokens.concat()).unwrap();
            let mut parts: Vec<Part<'_>> = tokens
                .iter()
                .zip(kvs)
                .map(|(tokens, kv)| Part { tokens, kv })
                .collect();
            slice.forward_batch(&mut parts, &mut hidden).unwrap();
            let all: Vec<usize> = (0..tokens.len()).collect();
            bits.push(slice.logits_batch(&hidden, &all).unwrap());
        }
    }
    bits.concat().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn no_way_of_computing_changes_a_bit() {
    let folder = tempfile::tempdir().unwrap();
    for path in models(folder.path()) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let best = load(
            &path,
            LayerSpan::full(config_of(&path).n_layer),
            2,
            Level::detect(),
        );
        let prompt = tokens(&best.info().config, 0);
        let (expected, kv) = prefill(&best, &prompt, LENGTH, None);
        assert!(expected.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        for (i, chunk) in [1, 7, 64].into_iter().enumerate() {
            let cut = (i > 0).then(|| i % (best.info().config.n_layer - 1));
            let found = prefill(&best, &prompt, chunk, cut);
            assert!(
                found.0 == expected,
                "{name}: chunk {chunk}, cut {cut:?}: other logits"
            );
            assert!(found.1 == kv, "{name}: chunk {chunk}, cut {cut:?}: other KV");
        }
        let sessions: Vec<Kv> = (0..8)
            .map(|i| {
                prefill(
                    &best,
                    &tokens(&best.info().config, i)[..LENGTH - 17 * i],
                    64,
                    None,
                )
                .1
            })
            .collect();
        for count in [1, 3, 8] {
            let (mut alone, mut together) = (sessions[..count].to_vec(), sessions[..count].to_vec());
            let expected = decode(&best, &mut alone, false);
            assert!(
                decode(&best, &mut together, true) == expected,
                "{name}: batch {count}: other logits"
            );
            assert!(alone == together, "{name}: batch {count}: other KV");
        }
        let alone = decode(&best, &mut sessions.clone(), false);
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            for (threads, chunk) in [(1, LENGTH), (2, 64), (3, 7)] {
                let other = load(&path, full(&best), threads, level);
                let found = prefill(&other, &prompt, chunk, Some(0));
                assert!(
                    found.0 == expected && found.1 == kv,
                    "{name}: {} differs",
                    other.info().backend
                );
                assert!(
                    decode(&other, &mut sessions.clone(), true) == alone,
                    "{name}: {}: batch differs",
                    other.info().backend
                );
                if level == Level::Scalar {
                    break;
                }
            }
        }
    }
}

fn config_of(path: &Path) -> ModelConfig {
    ModelConfig::from_gguf(&Gguf::open(path).unwrap()).unwrap()
}
