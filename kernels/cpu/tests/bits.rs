//! The back end has the bits of the scalar reference: for every format, shape, token count and thread count.

use ds4_kernels::{Activations, Backend, Format, Matrix, Scalar};
use ds4_kernels_cpu::{Cpu, Level};
use proptest::prelude::*;

const QUANTISED: [Format; 4] = [Format::Q8_0, Format::Q2K, Format::Q4K, Format::Iq2Xxs];

/// Random block bytes with finite scales: half exponents of all ones are lowered.
fn weights(format: Format, bytes: &[u8], rows: usize, blocks: usize) -> Vec<u8> {
    let size = format.block_bytes();
    let mut data: Vec<u8> = bytes.iter().copied().cycle().take(rows * blocks * size).collect();
    let halves: &[usize] = match format {
        Format::Q2K => &[80, 82],
        Format::Q4K => &[0, 2],
        Format::F32 => &[2],
        _ => &[0],
    };
    for block in data.chunks_exact_mut(size) {
        halves.iter().for_each(|at| block[at + 1] &= 0xbf);
    }
    data
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn product(backend: &impl Backend, matrix: &Matrix<'_>, x: &Activations) -> Vec<u32> {
    let mut y = vec![f32::NAN; x.tokens() * matrix.rows()];
    backend.matmul(matrix, x, &mut y);
    bits(&y)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn quantised_products_are_bit_equal(
        bytes in proptest::collection::vec(any::<u8>(), 200..700),
        values in proptest::collection::vec(-100.0_f32..100.0, 64..300),
        (rows, blocks, tokens, threads) in (1_usize..70, 1_usize..4, 1_usize..6, 1_usize..4),
    ) {
        for format in QUANTISED {
            let cols = blocks * format.block_len();
            let data = weights(format, &bytes, rows, blocks);
            let matrix = Matrix::new(format, rows, cols, &data).expect("whole blocks");
            let input: Vec<f32> = values.iter().copied().cycle().take(tokens * cols).collect();
            let quantised = if format == Format::Q8_0 { Activations::q8(&input, cols) } else { Activations::q8_k(&input, cols) };
            let cpu = Cpu::new(Some(threads), None).expect("threads");
            for x in [quantised, Activations::f32(&input, cols)] {
                prop_assert_eq!(product(&Scalar, &matrix, &x), product(&cpu, &matrix, &x), "{}", format);
            }
        }
    }

    #[test]
    fn plain_products_are_bit_equal(
        bytes in proptest::collection::vec(any::<u8>(), 200..700),
        values in proptest::collection::vec(-100.0_f32..100.0, 64..300),
        (rows, cols, tokens) in (1_usize..40, 1_usize..200, 1_usize..6),
    ) {
        for format in [Format::F16, Format::F32] {
            let data = weights(format, &bytes, rows, cols);
            let matrix = Matrix::new(format, rows, cols, &data).expect("whole blocks");
            let input: Vec<f32> = values.iter().copied().cycle().take(tokens * cols).collect();
            let x = Activations::f32(&input, cols);
            let cpu = Cpu::new(Some(2), None).expect("threads");
            prop_assert_eq!(product(&Scalar, &matrix, &x), product(&cpu, &matrix, &x), "{}", format);
        }
    }

    #[test]
    fn dots_and_sums_are_bit_equal(a in proptest::collection::vec(-1e6_f32..1e6, 0..200), factor in -10.0_f32..10.0) {
        let cpu = Cpu::new(Some(1), None).expect("threads");
        let b: Vec<f32> = a.iter().rev().map(|x| x * 0.37 - 1.0).collect();
        prop_assert_eq!(Scalar.dot(&a, &b).to_bits(), cpu.dot(&a, &b).to_bits());
        let (mut left, mut right) = (b.clone(), b);
        Scalar.axpy(factor, &a, &mut left);
        cpu.axpy(factor, &a, &mut right);
        prop_assert_eq!(bits(&left), bits(&right));
    }
}

#[test]
fn a_large_product_is_the_same_on_any_number_of_threads() {
    let (rows, cols) = (700, 512);
    let data: Vec<u8> = (0..rows * cols / 32 * 34)
        .map(|i| (i * 31 % 251) as u8 & 0x3f)
        .collect();
    let matrix = Matrix::new(Format::Q8_0, rows, cols, &data).expect("whole blocks");
    let input: Vec<f32> = (0..3 * cols).map(|i| (i as f32 * 0.13).sin()).collect();
    let x = Activations::q8(&input, cols);
    let expected = product(&Scalar, &matrix, &x);
    for (threads, level) in [(1, None), (2, None), (3, None), (2, Some(Level::Scalar))] {
        assert_eq!(
            product(&Cpu::new(Some(threads), level).expect("threads"), &matrix, &x),
            expected
        );
    }
}

#[test]
fn rows_are_filled_once_each() {
    let cpu = Cpu::new(Some(3), None).expect("threads");
    let mut out = vec![0.0; 100 * 7];
    cpu.each_row(&mut out, 7, &|i, row| row.iter_mut().for_each(|x| *x += i as f32));
    assert!(
        out.chunks(7)
            .enumerate()
            .all(|(i, row)| row.iter().all(|x| *x == i as f32))
    );
}
