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
