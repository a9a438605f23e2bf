//! Received rows: in order, whole, possible, complete; or an error that names what was wrong.

use ds4_gguf::LayerSpan;
use ds4_kernels::codec::{
    decode_indexer, decode_kv, encode_indexer, encode_kv, indexer_row_bytes, kv_row_bytes,
};
use ds4_model::{CompleteKv, Kv, KvError, KvKind, KvLayout, KvStaging, Numerics, TokenHash};
use proptest::prelude::*;

use crate::support::config;

const SPAN: LayerSpan = LayerSpan {
    first: 0,
    last: 1,
    head: false,
};

fn layout() -> KvLayout {
    KvLayout::new(&config(), Numerics::Canonical)
}

/// Bytes that the model could have made.
fn row(layout: &KvLayout, layer: usize, kind: KvKind, seed: u64) -> Vec<u8> {
    let value = |i: u64| ((seed * 31 + i * 7) % 23) as f32 * 0.25 - 2.5;
    let mut bytes = vec![0; layout.row_bytes(layer, kind)];
    match kind {
        KvKind::Window | KvKind::Compressed => {
            encode_kv(&(0..96).map(value).collect::<Vec<_>>(), 32, &mut bytes);
        }
        KvKind::Indexer => encode_indexer(&mut (0..32).map(value).collect::<Vec<_>>(), &mut bytes),
        _ => {
            bytes = (0..layout.row_bytes(layer, kind) as u64 / 4)
                .flat_map(|i| value(i).to_le_bytes())
                .collect()
        }
    }
    bytes
}

fn rows(layout: &KvLayout, layer: usize, kind: KvKind, range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|i| row(layout, layer, kind, i)).collect()
}

fn staging() -> KvStaging {
    KvStaging::new(&layout(), SPAN, 1000)
}

/// Everything that `SPAN` holds at `frontier`, but for what `skip` says.
fn filled(frontier: u64, skip: impl Fn(usize, KvKind) -> u64) -> KvStaging {
    let (layout, mut staging) = (layout(), staging());
    for layer in SPAN.layers() {
        for kind in layout.kinds(layer) {
            let mut expected = layout.expected_rows(layer, *kind, frontier);
            expected.end -= skip(layer, *kind);
            if !expected.is_empty() {
                let bytes = rows(&layout, layer, *kind, expected.clone());
                assert_eq!(
                    staging.write(layer, *kind, expected.start, &bytes),
                    Ok(expected.end - expected.start)
                );
            }
        }
    }
    staging
}

#[test]
fn a_complete_shard_commits_and_reads_back() {
    let kv = filled(135, |_, _| 0).commit(135, TokenHash::of(&[1])).unwrap();
    assert_eq!((kv.frontier(), kv.span()), (135, SPAN));
    let layout = layout();
    assert_eq!(
        kv.read(0, KvKind::Compressed, 3..9),
        Ok(&rows(&layout, 0, KvKind::Compressed, 3..9)[..])
    );
    let error = kv.read(0, KvKind::Compressed, 30..34).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 compressed: expected rows 30..34 at frontier 135, found 0..33"
    );
}

#[test]
fn a_missing_row_is_named_at_commit() {
    let missing =
        |of: usize, the: KvKind| move |layer: usize, kind: KvKind| u64::from(layer == of && kind == the);
    let error = filled(135, missing(1, KvKind::Compressed))
        .commit(135, TokenHash::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 1 compressed: expected rows 0..1 at frontier 135, found 0..0"
    );
    for kind in [
        KvKind::Window,
        KvKind::Indexer,
        KvKind::CompressorState,
        KvKind::IndexerState,
    ] {
        let error = filled(135, missing(0, kind))
            .commit(135, TokenHash::default())
            .unwrap_err();
        assert!(
            matches!(error, KvError::Rows { layer: 0, kind: named, .. } if named == kind),
            "{error}"
        );
    }
    let error = filled(135, |_, _| 0)
        .commit(136, TokenHash::default())
        .unwrap_err();
    assert!(matches!(error, KvError::Rows { frontier: 136, .. }), "{error}");
}

#[test]
fn duplicate_and_reordered_rows_are_refused() {
    let (layout, mut staging) = (layout(), staging());
    let bytes = rows(&layout, 0, KvKind::Compressed, 0..2);
    assert_eq!(staging.write(0, KvKind::Compressed, 0, &bytes), Ok(2));
    for first in [0, 1, 3] {
        let error = staging.write(0, KvKind::Compressed, first, &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("layer 0 compressed: expected row 2 next, found row {first}")
        );
    }
    let error = staging
        .write(0, KvKind::Indexer, 4, &rows(&layout, 0, KvKind::Indexer, 4..5))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 indexer: expected row 0 next, found row 4"
    );
}

/// Where a connection cuts rows makes no difference, and of refused ones nothing stays, not even those that were sound.
#[test]
fn rows_in_pieces_are_the_same_rows_and_refused_ones_leave_nothing() {
    let layout = layout();
    let bytes = rows(&layout, 0, KvKind::Compressed, 0..6);
    let row = bytes.len() / 6;
    let (mut expected, mut found) = (staging(), staging());
    expected.write(0, KvKind::Compressed, 0, &bytes).unwrap();
    for (start, size) in [(0, 1), (2 * row, row - 1), (4 * row, 2 * row)] {
        let mut spoiled = bytes[start..start + 2 * row].to_vec();
        spoiled[row] = 0xff;
        let first = (start / row) as u64;
        let refused = found.write_pieces(0, KvKind::Compressed, first, spoiled.chunks(size));
        assert!(matches!(refused, Err(KvError::Row { .. })), "{refused:?}");
        let pieces = bytes[start..start + 2 * row].chunks(size);
        assert_eq!(found.write_pieces(0, KvKind::Compressed, first, pieces), Ok(2));
    }
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
}

#[test]
fn rows_of_other_layers_kinds_and_sizes_are_refused() {
    let mut staging = staging();
    for (layer, kind) in [(2, KvKind::Window), (1, KvKind::Indexer), (9, KvKind::Compressed)] {
        let error = staging.write(layer, kind, 0, &[]).unwrap_err();
        assert_eq!(
            error,
            KvError::Unknown {
                layer,
                kind,
                span: SPAN
            }
        );
    }
    let error = staging.write(0, KvKind::Indexer, 0, &[0; 18]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 indexer: expected whole rows of 17 bytes, found 18 bytes"
    );
    let bytes = rows(&layout(), 0, KvKind::Window, 999..1002);
    let error = staging.write(0, KvKind::Window, 999, &bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 window: expected at most 1000 rows, found 1002"
    );
    assert!(staging.write(0, KvKind::Window, u64::MAX, &bytes).is_err());
}

#[test]
fn bytes_that_no_row_has_are_refused() {
    let layout = layout();
    let spoil = |kind: KvKind, at: usize, byte: u8| {
        let mut bytes = row(&layout, 0, kind, 5);
        bytes[at] = byte;
        staging().write(0, kind, 0, &bytes).unwrap_err().to_string()
    };
    // 64 codes, one scale, 32 halves.
    assert!(spoil(KvKind::Window, 9, 0xff).contains("code 9: expected a number"));
    assert!(
        spoil(KvKind::Window, 64, 104)
            .contains("scale 0: expected an exponent byte of 105 to 254, found 104")
    );
    assert!(spoil(KvKind::Compressed, 64, 255).contains("scale 0"));
    assert!(spoil(KvKind::Window, 65 + 3, 0x7c).contains("tail value 1: expected a finite half"));
    assert!(
        spoil(KvKind::Indexer, 16, 0).contains("scale 0: expected an exponent byte of 1 to 254, found 0")
    );
    let mut bytes = row(&layout, 0, KvKind::CompressorState, 5);
    bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = staging()
        .write(0, KvKind::CompressorState, 0, &bytes)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 compressor state row 0: expected finite numbers, found NaN"
    );
}

#[test]
fn shards_that_do_not_belong_together_are_not_joined() {
    let layout = layout();
    let shard = |first, last, tokens: &[u32]| {
        let span = LayerSpan {
            first,
            last,
            head: last == 3,
        };
        KvStaging::new(&layout, span, 10)
            .commit(0, TokenHash::of(tokens))
            .unwrap()
    };
    let join = |parts: Vec<Kv>| {
        CompleteKv::assemble(&layout, parts)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(join(vec![shard(2, 3, &[]), shard(0, 1, &[])]), Ok(()));
    assert_eq!(
        join(vec![shard(0, 1, &[])]),
        Err("layers: expected a shard that starts at layer 2, found no further shard".into())
    );
    assert_eq!(
        join(vec![shard(0, 0, &[]), shard(2, 3, &[])]),
        Err("layers: expected a shard that starts at layer 1, found layers 2:output".into())
    );
    assert!(
        join(vec![shard(0, 2, &[]), shard(2, 3, &[])])
            .unwrap_err()
            .contains("layer 3"),
        "an overlap"
    );
    assert!(
        join(vec![shard(0, 1, &[]), shard(2, 3, &[4])])
            .unwrap_err()
            .starts_with("token hash: expected")
    );
    assert!(join(vec![]).is_err());
    let reference = KvLayout::new(&config(), Numerics::Reference);
    assert!(
        CompleteKv::assemble(&reference, vec![shard(0, 3, &[])])
            .unwrap_err()
            .to_string()
            .starts_with("KV layout")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_the_rows_into_frames_gives_the_same_shard(frontier in 1_u64..300, cut in 1_u64..40) {
        let whole = filled(frontier, |_, _| 0).commit(frontier, TokenHash::default()).unwrap();
        let pieces = crate::support::transfer(&whole, cut, |_, _, _, _| {});
        prop_assert!(whole == pieces);
    }

    #[test]
    fn a_shard_short_of_any_rows_never_commits(frontier in 140_u64..300, layer in 0_usize..2, kind in 0_usize..5, short in 1_u64..3) {
        let kind = KvKind::ALL[kind];
        let there = layout().expected_rows(layer, kind, frontier);
        let short = short.min(there.end - there.start);
        prop_assume!(short > 0);
        let staging = filled(frontier, |at, of| if (at, of) == (layer, kind) { short } else { 0 });
        let refused = matches!(staging.commit(frontier, TokenHash::default()), Err(KvError::Rows { layer: at, kind: of, .. }) if (at, of) == (layer, kind));
        prop_assert!(refused);
    }

    #[test]
    fn random_bytes_never_panic(layer in 0_usize..3, kind in 0_usize..5, first in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = staging().write(layer, KvKind::ALL[kind], first, &bytes);
    }

    #[test]
    fn a_stored_row_survives_decoding_and_encoding(values in prop::collection::vec(-1e4_f32..1e4, 96)) {
        let mut bytes = vec![0; kv_row_bytes(96, 32)];
        let (mut again, mut decoded) = (bytes.clone(), vec![0.0; 96]);
        encode_kv(&values, 32, &mut bytes);
        decode_kv(&bytes, 32, &mut decoded);
        encode_kv(&decoded, 32, &mut again);
        let mut twice = vec![0.0; 96];
        decode_kv(&again, 32, &mut twice);
        prop_assert_eq!(&decoded, &twice, "loading rounded again");
        for (x, y) in values.iter().zip(&decoded).take(64) {
            let most = values[..64].iter().fold(1e-4_f32, |most, x| most.max(x.abs()));
            prop_assert!((x - y).abs() <= x.abs() / 16.0 + most / 448.0 * 2.0 / 512.0, "{} became {}", x, y);
        }
    }

    #[test]
    fn an_indexer_row_keeps_its_direction(values in prop::collection::vec(-10_f32..10.0, 32)) {
        prop_assume!(values.iter().any(|x| x.abs() > 0.5));
        let (mut bytes, mut decoded, mut row) = (vec![0; indexer_row_bytes(32)], vec![0.0; 32], values);
        encode_indexer(&mut row, &mut bytes);
        decode_indexer(&bytes, &mut decoded);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let cosine = dot(&row, &decoded) / (dot(&row, &row) * dot(&decoded, &decoded)).sqrt();
        prop_assert!(cosine > 0.95, "{}", cosine);
    }
}
