//! Activation quantisation and every product.

use ds4_kernels::{Activations, Form, Format, matmul};
use ds4_kernels_metal::activation::quantize;
use ds4_kernels_metal::matmul::{floats, quantized};
use ds4_kernels_metal::matrix::Weights;

use crate::support::{Bench, Random, assert_bits, bench, matrix, rows};

/// Rows and tokens that are no multiples of any tile; 2304 columns are two steps of every format's loop and a rest.
const SHAPES: [(usize, usize, usize); 7] = [
    (1, 256, 1),
    (17, 512, 1),
    (33, 2304, 1),
    (3, 256, 2),
    (9, 1280, 9),
    (5, 2304, 17),
    (66, 512, 41),
];

fn codes(values: &[f32], cols: usize, form: Form) -> (Vec<i8>, Vec<f32>) {
    match Activations::new(values, cols, form) {
        Activations::Q8 { codes, scales, .. } => (codes, scales),
        Activations::F32 { .. } => panic!("a quantised form"),
    }
}

fn check_quantized(
    bench: &Bench,
    format: Format,
    (n, cols, tokens): (usize, usize, usize),
    random: &mut Random,
) {
    let bytes = rows(random, format, n, cols);
    let mut values = random.values(tokens * cols);
    // A block of zeros, and one with a single outlier of the other sign.
    values[..32].fill(0.0);
    values[cols - 1] = -9.0;
    let weights = matrix(format, n, cols, &bytes);
    let form = Form::of(format);
    let mut expected = vec![0.0; tokens * n];
    matmul(&weights, &Activations::new(&values, cols, form), &mut expected);
    let (expected_codes, expected_scales) = codes(&values, cols, form);
    let on_device = Weights::upload(bench.device, &weights).unwrap();
    let x = bench.upload(&values);
    bench.each_way(|device| {
        let (codes, scales) = (bench.room(values.len()), bench.room(expected_scales.len()));
        let q = quantize(device, form, cols, x.all(), codes.all(), scales.all()).unwrap();
        let y = bench.room(expected.len());
        quantized(device, on_device.all(), q, y.all()).unwrap();
        let found = device.download(codes.all()).unwrap();
        let differ = (0..found.len()).find(|i| found[*i] != expected_codes[*i]);
        assert_eq!(differ, None, "{format} codes of {n} x {cols} x {tokens}");
        assert_bits(
            "scales",
            &expected_scales,
            &device.download(scales.all()).unwrap(),
        );
        let what = format!("{format} [{n}, {cols}] x {tokens}");
        assert_bits(&what, &expected, &device.download(y.all()).unwrap());
    });
}

#[cfg_attr(test, test)]
pub fn products_of_quantised_weights_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(1);
    for format in [
        Format::Q8_0,
        Format::Q2K,
        Format::Q4K,
        Format::Iq2Xxs,
        Format::Mxfp4,
    ] {
        for shape in SHAPES {
            check_quantized(&bench, format, shape, &mut random);
        }
    }
}

#[cfg_attr(test, test)]
pub fn products_of_floats_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(2);
    for format in [Format::F32, Format::F16] {
        for (n, cols, tokens) in [(1, 1, 1), (6, 100, 1), (5, 320, 3), (7, 31, 9), (4, 1024, 4)] {
            let bytes = rows(&mut random, format, n, cols);
            let values = random.values(tokens * cols);
            let weights = matrix(format, n, cols, &bytes);
            let mut expected = vec![0.0; tokens * n];
            matmul(&weights, &Activations::f32(&values, cols), &mut expected);
            let on_device = Weights::upload(bench.device, &weights).unwrap();
            let x = bench.upload(&values);
            bench.each_order(|device| {
                let y = bench.room(expected.len());
                floats(device, on_device.all(), x.all(), y.all()).unwrap();
                let what = format!("{format} [{n}, {cols}] x {tokens}");
                assert_bits(&what, &expected, &device.download(y.all()).unwrap());
            });
        }
    }
}

#[cfg_attr(test, test)]
pub fn operands_that_do_not_fit_are_refused_by_name() {
    let bench = bench();
    let bytes = rows(&mut Random(3), Format::Q8_0, 4, 64);
    let weights = Weights::upload(bench.device, &matrix(Format::Q8_0, 4, 64, &bytes)).unwrap();
    let (x, codes, scales, y) = (
        bench.upload(&[0.5; 64]),
        bench.room(64),
        bench.room(2),
        bench.room(5),
    );
    let q = quantize(bench.device, Form::Q8, 64, x.all(), codes.all(), scales.all()).unwrap();
    let error = quantized(bench.device, weights.all(), q, y.all()).unwrap_err();
    assert_eq!(error.to_string(), "matmul: y: expected 4, found 5");
}
