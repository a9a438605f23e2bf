//! The proposals of `ds4 inspect`.

use ds4_gguf::{Gguf, LayerSpan};
use ds4_model::plan::{PlanError, Sizes, split};
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

fn spans(memory: &[u64]) -> Result<Vec<String>, PlanError> {
    let shares = split(&sizes(), memory, 4096)?;
    Ok(shares.iter().map(|share| share.span.to_string()).collect())
}

#[test]
fn one_machine_takes_everything() {
    assert_eq!(spans(&[40 * GIB]).unwrap(), ["0:output"]);
}

#[test]
fn equal_machines_get_equal_work() {
    assert_eq!(spans(&[40 * GIB, 40 * GIB]).unwrap(), ["0:5", "6:output"]);
    assert_eq!(spans(&[40 * GIB; 3]).unwrap(), ["0:3", "4:7", "8:output"]);
}

#[test]
fn a_small_machine_gets_what_fits() {
    let shares = split(&sizes(), &[6 * GIB, 40 * GIB], 4096).unwrap();
    assert_eq!(
        shares[0].span.to_string(),
        "0:1",
        "2 layers and the embedding take 5 GiB of 6"
    );
    assert!(shares.iter().all(|share| share.needed <= share.memory));
    assert_eq!(
        shares[1].needed,
        sizes().resident(LayerSpan::full(12), 4096),
        "the last machine holds the whole model"
    );
}

#[test]
fn spans_tile_the_model_for_any_number_of_machines() {
    for machines in 1..=12 {
        let shares = split(&sizes(), &vec![40 * GIB; machines], 4096).unwrap();
        let mut next = 0;
        for share in &shares {
            assert_eq!(share.span.first, next);
            next = share.span.last + 1;
        }
        assert_eq!((next, shares.len()), (12, machines));
        assert!(
            shares
                .iter()
                .enumerate()
                .all(|(i, share)| share.span.head == (i + 1 == machines))
        );
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let error = spans(&[40 * GIB, 8 * GIB]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("; machine 1 is large enough: name it last"),
        "{error}"
    );
    assert!(matches!(spans(&[GIB, 40 * GIB]), Err(PlanError::Stages { .. })));
    assert_eq!(spans(&[]), Err(PlanError::Machines { layers: 12, found: 0 }));
    assert_eq!(
        spans(&[40 * GIB; 13]),
        Err(PlanError::Machines {
            layers: 12,
            found: 13
        })
    );
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
