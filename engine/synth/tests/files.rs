//! Files on disk: sizes, identity, and that the reader takes them.

use ds4_gguf::{Gguf, LayerSpan, ModelConfig, tensors};
use ds4_synth::{Dims, Preset, write};
use sha2::{Digest, Sha256};

fn made(dims: &Dims) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, dims, &mut |done, total| assert!(done <= total)).expect("written");
    (folder, path)
}

#[test]
fn micro_and_tiny_are_complete_models_of_the_promised_size() {
    for (preset, most) in [(Preset::Micro, 3_100_000), (Preset::Tiny, 12_000_000)] {
        let (_folder, path) = made(&Dims::preset(preset));
        let gguf = Gguf::open(&path).expect("sound");
        let config = ModelConfig::from_gguf(&gguf).expect("typed");
        tensors::check(&gguf, &config, LayerSpan::full(config.n_layer)).expect("complete");
        assert!(gguf.length() <= most, "{} bytes", gguf.length());
        assert!(config.ratios.contains(&0) && config.ratios.contains(&4) && config.ratios.contains(&128));
        assert!(config.n_hash > 0 && config.n_hash < config.n_layer);
    }
}

#[test]
fn a_draft_head_is_complete_and_changes_nothing_else() {
    for preset in [Preset::Micro, Preset::Tiny] {
        let plain = Dims::preset(preset);
        let (_folder, path) = made(&plain);
        let (_folder_too, with) = made(&Dims { mtp: true, ..plain });
        let (gguf, with) = (
            Gguf::open(&path).expect("sound"),
            Gguf::open(&with).expect("sound"),
        );
        let config = ModelConfig::from_gguf(&with).expect("typed");
        assert_eq!(config, ModelConfig::from_gguf(&gguf).expect("typed"));
        let head = tensors::check_draft(&with, &config).expect("complete");
        assert_eq!(with.tensors().len(), gguf.tensors().len() + head.len());
        assert!(head.iter().all(|tensor| gguf.tensor(&tensor.name).is_none()));
        let error = tensors::check_draft(&gguf, &config).expect_err("there is none");
        assert!(
            error
                .to_string()
                .starts_with("tensor mtp.0.enorm.weight: expected it to be present"),
            "{error}"
        );
    }
}

#[test]
fn weights_depend_on_the_seed_and_on_nothing_else() {
    let micro = Dims::preset(Preset::Micro);
    let print = |dims: &Dims| {
        let (_folder, path) = made(dims);
        Gguf::open(&path)
            .and_then(|gguf| gguf.fingerprint())
            .expect("sound")
    };
    assert_eq!(print(&micro), print(&micro));
    assert_ne!(
        print(&micro),
        print(&Dims {
            seed: 9,
            ..micro.clone()
        })
    );
}

/// Computed from the generator that the oracle logits were made with; a change here makes those logits worthless.
#[test]
fn the_tensors_of_micro_are_those_of_the_oracle() {
    let (_folder, path) = made(&Dims::preset(Preset::Micro));
    let bytes = std::fs::read(&path).expect("there");
    let gguf = Gguf::open(&path).expect("sound");
    let mut digest = Sha256::new();
    for tensor in gguf.tensors() {
        digest.update(&tensor.name);
        digest.update(&bytes[tensor.offset as usize..(tensor.offset + tensor.bytes) as usize]);
    }
    let found: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(found, include_str!("micro.sha256").trim());
}
