//! Embedding rows, and the choice of a token.

use ds4_kernels::{Format, dequantize_row};
use ds4_kernels_metal::embedding::{argmax, embed};
use ds4_kernels_metal::matrix::Weights;

use crate::support::{Random, assert_bits, bench, matrix, rows};

#[cfg_attr(test, test)]
pub fn every_stream_gets_the_tokens_row() {
    let bench = bench();
    let (vocabulary, width, streams) = (7, 96, 4);
    let tokens = [6u32, 0, 3];
    for format in [Format::F32, Format::F16, Format::Q8_0] {
        let bytes = rows(&mut Random(1), format, vocabulary, width);
        let table = matrix(format, vocabulary, width, &bytes);
        let mut expected = Vec::new();
        for token in tokens {
            let mut row = vec![0.0; width];
            dequantize_row(format, table.row(token as usize), &mut row);
            (0..streams).for_each(|_| expected.extend_from_slice(&row));
        }
        let table = Weights::upload(bench.device, &table).unwrap();
        let ids = bench.upload(&tokens);
        bench.each_order(|device| {
            let out = bench.room(expected.len());
            embed(device, &table, ids.all(), streams, out.all()).unwrap();
            assert_bits(format.name(), &expected, &device.download(out.all()).unwrap());
        });
    }
}

#[cfg_attr(test, test)]
pub fn the_first_of_the_largest_is_chosen_and_what_is_no_number_is_not() {
    let bench = bench();
    let mut random = Random(2);
    let width = 1000;
    let mut logits = random.values(4 * width);
    logits[5] = f32::NAN;
    for (row, at) in [(0, 313), (0, 900), (1, 999), (2, 0)] {
        logits[row * width + at] = 7.0;
    }
    logits[3 * width..].fill(f32::NEG_INFINITY);
    let x = bench.upload(&logits);
    bench.each_order(|device| {
        let out = bench.room(4);
        argmax(device, x.all(), out.all()).unwrap();
        assert_eq!(device.download(out.all()).unwrap(), [313, 999, 0, 0]);
    });
}
