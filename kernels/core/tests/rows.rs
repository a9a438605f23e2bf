//! The row checks accept what the encoders write, and a row that passes a check decodes to finite numbers that are stored as they are.

use ds4_kernels::codec;
use proptest::prelude::*;

const WIDTH: usize = 192;
const TAIL: usize = 64;
const INDEXER: usize = 128;

fn kv(row: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xff; codec::kv_row_bytes(WIDTH, TAIL)];
    codec::encode_kv(row, TAIL, &mut bytes);
    bytes
}

fn indexer(row: &mut [f32]) -> Vec<u8> {
    let mut bytes = vec![0xff; codec::indexer_row_bytes(INDEXER)];
    codec::encode_indexer(row, &mut bytes);
    bytes
}

fn kv_values(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; WIDTH];
    codec::decode_kv(bytes, TAIL, &mut values);
    values
}

/// Values of every magnitude, of either sign, zeros among them.
fn any_scale(most: i32) -> impl Strategy<Value = f32> {
    (-1.0f32..1.0, -130..most, any::<bool>())
        .prop_map(|(x, e, zero)| if zero { 0.0 * x } else { x * 2f32.powi(e) })
}

proptest! {
    #[test]
    fn every_kv_row_that_is_written_passes_and_keeps_its_values(
        body in prop::collection::vec(any_scale(120), WIDTH - TAIL),
        tail in prop::collection::vec(any_scale(15), TAIL),
    ) {
        let bytes = kv(&[body, tail].concat());
        prop_assert_eq!(codec::check_kv(&bytes, WIDTH, TAIL), Ok(()));
        let values = kv_values(&bytes);
        prop_assert!(values.iter().all(|x| x.is_finite()));
        let again = kv(&values);
        prop_assert_eq!(codec::check_kv(&again, WIDTH, TAIL), Ok(()));
        prop_assert_eq!(kv_values(&again), values);
    }

    #[test]
    fn every_indexer_row_that_is_written_passes(mut row in prop::collection::vec(any_scale(110), INDEXER)) {
        let bytes = indexer(&mut row);
        prop_assert_eq!(codec::check_indexer(&bytes, INDEXER), Ok(()));
        let mut values = vec![f32::NAN; INDEXER];
        codec::decode_indexer(&bytes, &mut values);
        prop_assert!(values.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_nan_code_is_refused_wherever_it_stands(at in 0..WIDTH - TAIL, minus in any::<bool>()) {
        let mut bytes = kv(&[1.0; WIDTH]);
        bytes[at] = if minus { 0xff } else { 0x7f };
        prop_assert!(codec::check_kv(&bytes, WIDTH, TAIL).is_err());
    }

    #[test]
    fn a_row_of_another_length_is_refused(length in 0..2 * codec::kv_row_bytes(WIDTH, TAIL)) {
        let bytes = vec![0x7e; length];
        if length != codec::kv_row_bytes(WIDTH, TAIL) {
            prop_assert!(codec::check_kv(&bytes, WIDTH, TAIL).is_err());
        }
        if length != codec::indexer_row_bytes(INDEXER) {
            prop_assert!(codec::check_indexer(&bytes, INDEXER).is_err());
        }
    }
}

#[test]
fn scales_below_the_floor_and_beyond_the_largest_are_refused() {
    let zeros = kv(&[0.0; WIDTH]);
    let least = zeros[WIDTH - TAIL];
    for refused in [0, least - 1, 255] {
        let mut bytes = zeros.clone();
        bytes[WIDTH - TAIL + 1] = refused;
        assert!(
            codec::check_kv(&bytes, WIDTH, TAIL).is_err(),
            "exponent byte {refused}"
        );
    }
    let mut bytes = indexer(&mut [0.0; INDEXER]);
    for refused in [0, 255] {
        bytes[INDEXER / 2] = refused;
        assert!(
            codec::check_indexer(&bytes, INDEXER).is_err(),
            "exponent byte {refused}"
        );
    }
}

/// The one corner where a second encoding has other bytes: 225 of 448 takes exponent 0, rounds to 224, and 224 alone fits exponent -1.
#[test]
fn a_block_whose_largest_rounds_to_a_power_boundary_keeps_its_values_not_its_bytes() {
    let mut row = [0.0; WIDTH];
    row[0] = 225.0;
    let once = kv(&row);
    let values = kv_values(&once);
    assert_eq!(values[0], 224.0);
    let twice = kv(&values);
    assert_ne!(once, twice);
    assert_eq!(kv_values(&twice), values);
}
