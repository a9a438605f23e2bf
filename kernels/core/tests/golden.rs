//! De-quantisation and the KV codec against independent implementations (`golden/make.py`), and the matmul against de-quantised arithmetic.

use ds4_kernels::{Activations, Form, Format, Matrix, codec, dequantize_row, matmul};
use proptest::prelude::*;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("golden/", $name)).as_slice()
    };
}

const QUANTIZED: [(Format, &[u8], &[u8]); 5] = [
    (Format::Q8_0, golden!("Q8_0.blocks"), golden!("Q8_0.f32")),
    (Format::Q2K, golden!("Q2_K.blocks"), golden!("Q2_K.f32")),
    (Format::Q4K, golden!("Q4_K.blocks"), golden!("Q4_K.f32")),
    (Format::Iq2Xxs, golden!("IQ2_XXS.blocks"), golden!("IQ2_XXS.f32")),
    (Format::Mxfp4, golden!("MXFP4.blocks"), golden!("MXFP4.f32")),
];

#[test]
fn every_quantised_format_agrees_with_gguf_py() {
    for (format, blocks, expected) in QUANTIZED {
        let expected = floats(expected);
        let mut found = vec![f32::NAN; expected.len()];
        dequantize_row(format, blocks, &mut found);
        if format == Format::Mxfp4 {
            // Integers times powers of two: nothing is rounded.
            assert_eq!(found, expected);
        }
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // One rounding in the last place: the two multiply in another order.
            assert!(
                (found - expected).abs() <= expected.abs() * 3e-7 + 1e-9,
                "{format} value {i}: {found} {expected}"
            );
        }
    }
}

#[test]
fn quantised_activations_meet_the_dot_of_their_own_values() {
    for (format, blocks, _) in QUANTIZED {
        let (rows, cols) = (blocks.len() / format.block_bytes() / 2, 2 * format.block_len());
        let weights = Matrix::new(format, rows, cols, blocks).expect("whole blocks");
        let input: Vec<f32> = (0..3 * cols)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03)
            .collect();
        let x = Activations::new(&input, cols, Form::of(format));
        let Activations::Q8 {
            codes, scales, block, ..
        } = &x
        else {
            panic!("quantised")
        };
        let restored: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, c)| f32::from(*c) * scales[i / block])
            .collect();
        let (mut found, mut expected) = (vec![f32::NAN; 3 * rows], vec![f32::NAN; 3 * rows]);
        matmul(&weights, &x, &mut found);
        matmul(&weights, &Activations::f32(&restored, cols), &mut expected);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= expected.abs() * 1e-4 + 1e-3,
                "{format}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_token_has_the_same_result_alone_and_among_others() {
    let (format, blocks, _) = QUANTIZED[1];
    let weights = Matrix::new(format, 6, 256, blocks).expect("whole blocks");
    let input: Vec<f32> = (0..5 * 256).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut together = vec![f32::NAN; 30];
    matmul(&weights, &Activations::q8_k(&input, 256), &mut together);
    for (token, values) in input.chunks(256).enumerate() {
        let mut alone = [f32::NAN; 6];
        matmul(&weights, &Activations::q8_k(values, 256), &mut alone);
        assert_eq!(alone, together[token * 6..token * 6 + 6]);
    }
}

#[test]
fn kv_rows_round_as_the_reference_does() {
    let (rows, expected) = (floats(golden!("kv.f32")), floats(golden!("kv.rounded.f32")));
    for (row, expected) in rows.chunks(192).zip(expected.chunks(192)) {
        let mut bytes = vec![0xff; codec::kv_row_bytes(192, 64)];
        codec::encode_kv(row, 64, &mut bytes);
        let mut found = vec![f32::NAN; 192];
        codec::decode_kv(&bytes, 64, &mut found);
        assert_eq!(found, expected);
    }
}

#[test]
fn indexer_rows_round_as_the_reference_does() {
    let (rows, expected) = (
        floats(golden!("indexer.f32")),
        floats(golden!("indexer.rounded.f32")),
    );
    for (row, expected) in rows.chunks(64).zip(expected.chunks(64)) {
        let (mut row, mut bytes) = (row.to_vec(), vec![0xff; codec::indexer_row_bytes(64)]);
        codec::encode_indexer(&mut row, &mut bytes);
        let mut found = vec![f32::NAN; 64];
        codec::decode_indexer(&bytes, &mut found);
        assert_eq!(found, expected);
    }
}

#[test]
fn bytes_that_are_not_the_shape_are_refused_with_both_counts() {
    let error = Matrix::new(Format::Q8_0, 2, 64, &[0; 100]).expect_err("136 bytes are needed");
    assert_eq!(error.to_string(), "[2, 64] Q8_0 takes 136 bytes, found 100");
    let error = Matrix::new(Format::Q2K, 2, 200, &[]).expect_err("no whole block");
    assert_eq!(
        error.to_string(),
        "a row of 200 values is no whole number of Q2_K blocks of 256"
    );
}

proptest! {
    #[test]
    fn a_stored_kv_row_never_changes_its_values_again(row in prop::collection::vec(-1e4f32..1e4, 192)) {
        let mut bytes = vec![0xff; codec::kv_row_bytes(192, 64)];
        codec::encode_kv(&row, 64, &mut bytes);
        let (mut once, mut twice) = (vec![0.0; 192], vec![0.0; 192]);
        codec::decode_kv(&bytes, 64, &mut once);
        codec::encode_kv(&once, 64, &mut bytes);
        codec::decode_kv(&bytes, 64, &mut twice);
        prop_assert_eq!(once, twice);
    }
}
