//! Activation quantisation and every product.

use ds4_kernels::{Activations, Form, Format, matmul};
use ds4_kernels_cuda::activation::quantize;
use ds4_kernels_cuda::matmul::{floats, quantized};

use crate::bench::matrix;
use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "product of Q8_0 weights",
        kernels: &[
            "quantize_q8",
            "matvec_q8_0",
            "matmul_q8_0",
            "tiles_q8_0",
            "split_blocks",
        ],
        run: |bench| product(bench, Format::Q8_0),
    },
    Case {
        name: "product of Q2_K weights",
        kernels: &["quantize_q8_k", "matvec_q2_k", "matmul_q2_k", "tiles_q2_k"],
        run: |bench| product(bench, Format::Q2K),
    },
    Case {
        name: "product of Q4_K weights",
        kernels: &["matvec_q4_k", "matmul_q4_k", "tiles_q4_k"],
        run: |bench| product(bench, Format::Q4K),
    },
    Case {
        name: "product of IQ2_XXS weights",
        kernels: &["matvec_iq2_xxs", "matmul_iq2_xxs", "tiles_iq2_xxs"],
        run: |bench| product(bench, Format::Iq2Xxs),
    },
    Case {
        name: "product of MXFP4 weights",
        kernels: &["matvec_mxfp4", "matmul_mxfp4", "tiles_mxfp4"],
        run: |bench| product(bench, Format::Mxfp4),
    },
    Case {
        name: "peak of byte products",
        kernels: &["peak_bytes"],
        run: peak,
    },
    Case {
        name: "product of F32 weights",
        kernels: &["matvec_f32", "matmul_f32"],
        run: |bench| product_of_floats(bench, Format::F32),
    },
    Case {
        name: "product of F16 weights",
        kernels: &["matvec_f16", "matmul_f16"],
        run: |bench| product_of_floats(bench, Format::F16),
    },
];

/// Rows and columns: fewer for many tokens, so that the reference stays quick; no multiples of a tile.
fn shape(bench: &mut Bench<'_>, block: usize) -> (usize, usize) {
    if bench.tokens > 64 {
        return (bench.random.within(1, 3), block);
    }
    // At most two steps of a format's loop, which takes 1024 values, and a rest.
    let blocks = bench.random.within(1, 2304 / block);
    (bench.random.within(1, 37), blocks * block)
}

fn product(bench: &mut Bench<'_>, format: Format) -> Outcome {
    let (n, cols) = shape(bench, format.block_len());
    let tokens = bench.tokens;
    let bytes = bench.random.rows(format, n, cols);
    let mut values = bench.random.values(tokens * cols);
    // A block of zeros, and one with a single outlier of the other sign.
    values[..32].fill(0.0);
    values[cols - 1] = -9.0;
    let weights = matrix(format, n, cols, &bytes)?;
    let form = Form::of(format);
    let activations = Activations::new(&values, cols, form);
    let mut expected = vec![0.0; tokens * n];
    matmul(&weights, &activations, &mut expected);
    let on_device = bench.weights(&weights)?;
    let x = bench.upload(&values)?;
    let (codes, scales) = (
        bench.room(values.len())?,
        bench.room(values.len() / format.block_len())?,
    );
    let q = quantize(bench.device, form, cols, x.all(), codes.all(), scales.all())?;
    if let Activations::Q8 {
        codes: expected_codes,
        scales: expected_scales,
        ..
    } = &activations
    {
        bench.equal("codes", expected_codes, codes.all())?;
        bench.bits("scales", expected_scales, scales.all())?;
    }
    let y = bench.room(expected.len())?;
    quantized(bench.device, on_device.all(), q, y.all())?;
    bench.bits(&format!("{format} [{n}, {cols}] x {tokens}"), &expected, y.all())
}

fn product_of_floats(bench: &mut Bench<'_>, format: Format) -> Outcome {
    let (n, cols) = match shape(bench, 1) {
        (n, 1) => (n, bench.random.within(1, 40)),
        (n, cols) => (n, 1 + cols / 2),
    };
    let tokens = bench.tokens;
    let bytes = bench.random.rows(format, n, cols);
    let values = bench.random.values(tokens * cols);
    let weights = matrix(format, n, cols, &bytes)?;
    let mut expected = vec![0.0; tokens * n];
    matmul(&weights, &Activations::f32(&values, cols), &mut expected);
    let (on_device, x, y) = (
        bench.weights(&weights)?,
        bench.upload(&values)?,
        bench.room(expected.len())?,
    );
    floats(bench.device, on_device.all(), x.all(), y.all())?;
    bench.bits(&format!("{format} [{n}, {cols}] x {tokens}"), &expected, y.all())
}

/// The operands of the measure are such that every number in a tile's sum is known: 32 products in each of 32 sums of a thread.
fn peak(bench: &mut Bench<'_>) -> Outcome {
    let (a, b) = (bench.random.within(1, 9), bench.random.within(1, 9));
    let (rounds, blocks) = (bench.random.within(1, 5), bench.tokens.min(3));
    #[allow(clippy::cast_possible_truncation)] // a byte in each place of a word
    let operands = [a, a, a, a, b, b].map(|byte| byte as u32 * 0x0101_0101);
    let (operands, out) = (bench.upload(&operands)?, bench.room(blocks * 256)?);
    ds4_kernels_cuda::peak::bytes(bench.device, operands.all(), out.all(), rounds)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // at most 81 * 1024 * 5
    let sum = (a * b * 32 * 32 * rounds) as i32;
    bench.equal("sums", &vec![sum; blocks * 256], out.all())
}
