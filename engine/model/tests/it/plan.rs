//! What the parts of a model weigh.

use ds4_gguf::{Gguf, LayerSpan};
use ds4_model::plan::Sizes;
use ds4_model::{KvLayout, Numerics};

use crate::support::{config, write};

const GIB: u64 = 1 << 30;

/// Twelve layers of 2 GiB, an embedding and a head of 1 GiB.
fn sizes() -> Sizes {
    let mut config = config();
    config.n_layer = 12;
    config.ratios = vec![4; 12];
    Sizes {
        embedding: GIB,
        layers: vec![2 * GIB; 12],
        head: GIB,
        layout: KvLayout::new(&config, Numerics::Canonical),
    }
}

#[test]
fn the_planner_is_given_what_the_file_weighs() {
    let (sizes, mut config) = (sizes(), config());
    config.n_layer = 12;
    let parts = sizes.parts(&config, 4096);
    assert_eq!(
        parts.resident(parts.full()),
        sizes.resident(LayerSpan::full(12), 4096)
    );
    assert_eq!(parts.activation, config.hidden_width() as u64 * 4);
}

#[test]
fn longer_contexts_take_more_memory() {
    let sizes = sizes();
    let full = LayerSpan::full(12);
    assert!(sizes.resident(full, 1 << 20) > sizes.resident(full, 4096));
    let per_token = sizes.layout.bytes_per_token(0..12);
    let grown = sizes.layout.bytes(0..12, 8192) - sizes.layout.bytes(0..12, 4096);
    assert!(
        (per_token * 4096.0 - grown as f64).abs() < 1.0,
        "{per_token} per token, {grown} for 4096"
    );
}

#[test]
fn the_parts_of_a_file_add_up() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &config());
    let gguf = Gguf::open(file.path()).unwrap();
    let sizes = Sizes::of(&gguf, &config(), Numerics::Canonical).unwrap();
    let all: u64 = gguf.tensors().iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(sizes.weights(LayerSpan::full(4)), all);
    assert_eq!(sizes.embedding, 96 * 256 * 2);
    let (early, late) = (
        LayerSpan {
            first: 0,
            last: 1,
            head: false,
        },
        LayerSpan {
            first: 2,
            last: 3,
            head: true,
        },
    );
    assert_eq!(sizes.weights(early) + sizes.weights(late), all);
}

/// The published Flash model: 43 layers, rows of 512 values, 64 of them rotary.
#[test]
fn a_million_tokens_of_flash_fit_in_four_and_a_half_gigabytes() {
    let mut flash = config();
    (flash.n_layer, flash.window) = (43, 128);
    (flash.head_dim, flash.n_rot, flash.indexer.dim) = (512, 64, 128);
    flash.ratios = (0..43)
        .map(|layer| if layer < 2 { 0 } else { [4, 128][layer % 2] })
        .collect();
    let layout = KvLayout::new(&flash, Numerics::Canonical);
    let bytes = layout.bytes(0..43, 1 << 20);
    // A vector of rows takes a sixteenth more than it holds at most: `kv::tests` hold that.
    let taken = bytes + bytes / 16;
    assert!((3_400_000_000..4_500_000_000).contains(&taken), "{taken} bytes");
}
