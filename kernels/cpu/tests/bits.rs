//! The back end has the bits of the scalar reference: for every format, level, shape, token count and thread count.

use ds4_kernels::{Activations, Backend, Choice, Experts, Form, Format, Matrix, Q8_BLOCK, Scalar};
use ds4_kernels_cpu::{Cpu, Level};
use proptest::prelude::*;

const QUANTISED: [Format; 5] = [
    Format::Q8_0,
    Format::Q2K,
    Format::Q4K,
    Format::Iq2Xxs,
    Format::Mxfp4,
];

/// Interpreters and sanitisers are a hundred times slower.
fn small() -> bool {
    cfg!(miri) || std::env::var_os("DS4_SMALL_TESTS").is_some()
}

fn cases(most: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if small() { 2 } else { most })
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.available())
}

#[test]
fn the_best_level_of_the_processor_is_found() {
    let cpu = Cpu::new(Some(1), None).expect("threads");
    assert!(cpu.level().available() && levels().last() == Some(cpu.level()));
    // `cargo xtask neon` says which processor it emulates.
    if let Some(expected) = std::env::var_os("DS4_EXPECTED_LEVEL") {
        assert_eq!(cpu.level().to_string().as_str(), expected);
    }
}

/// Where a block has halves.
fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::Q2K => &[80, 82],
        Format::Q4K => &[0, 2],
        Format::F32 => &[2],
        Format::Mxfp4 => &[],
        _ => &[0],
    }
}

/// Random block bytes with finite scales: half exponents of all ones are lowered.
fn weights(format: Format, bytes: &[u8], rows: usize, blocks: usize) -> Vec<u8> {
    let size = format.block_bytes();
    let mut data: Vec<u8> = bytes.iter().copied().cycle().take(rows * blocks * size).collect();
    for block in data.chunks_exact_mut(size) {
        halves(format).iter().for_each(|at| block[at + 1] &= 0xbf);
        if format == Format::Mxfp4 {
            block[0] = block[0] % 64 + 96;
        }
    }
    data
}

/// A generator of its own for shapes that are gone through one by one.
fn noise(count: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    noise(2 * count, seed)
        .chunks_exact(2)
        .map(|two| f32::from(i16::from_le_bytes([two[0], two[1]])) / 3000.0)
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn product(backend: &impl Backend, matrix: &Matrix<'_>, x: &Activations<'_>) -> Vec<u32> {
    let mut y = vec![f32::NAN; x.tokens() * matrix.rows()];
    backend.matmul(matrix, x, &mut y);
    bits(&y)
}

/// Compares all levels, in both forms of activations.
fn compare(
    format: Format,
    rows: usize,
    cols: usize,
    tokens: usize,
    threads: usize,
    data: &[u8],
    input: &[f32],
) {
    let matrix = Matrix::new(format, rows, cols, data).expect("whole blocks");
    for form in [Form::of(format), Form::F32] {
        let x = Activations::new(input, cols, form);
        let expected = product(&Scalar, &matrix, &x);
        for level in levels() {
            let cpu = Cpu::new(Some(threads), Some(level)).expect("threads");
            let found = product(&cpu, &matrix, &x);
            assert!(
                found == expected,
                "{format} [{rows}, {cols}] x {tokens} at {level}x{threads}, {form:?}"
            );
        }
    }
}

#[test]
fn every_row_and_token_count_has_the_same_bits() {
    let (most_rows, most_tokens) = if small() { (18, 5) } else { (67, 19) };
    for format in QUANTISED {
        for (i, rows) in (1..=most_rows).step_by(if small() { 16 } else { 1 }).enumerate() {
            let (tokens, blocks) = (i % most_tokens + 1, i % 3 + 1);
            let cols = blocks * format.block_len();
            let data = weights(format, &noise(5000, i as u64), rows, blocks);
            compare(
                format,
                rows,
                cols,
                tokens,
                i % 3 + 1,
                &data,
                &values(tokens * cols, 77 + i as u64),
            );
        }
    }
}

#[test]
fn long_rows_have_the_same_bits() {
    for format in QUANTISED {
        let cols = if small() { 512 } else { 2816 };
        let blocks = cols / format.block_len();
        for tokens in [1, 2, 4, 8, 9, 16, 37] {
            let data = weights(format, &noise(40_000, tokens as u64), 33, blocks);
            compare(
                format,
                33,
                cols,
                tokens,
                2,
                &data,
                &values(tokens * cols, tokens as u64),
            );
        }
    }
}

#[test]
fn extreme_codes_and_scales_do_not_saturate() {
    // Bytes of all ones, of all zeros, and the most negative code.
    for byte in [0xff_u8, 0x00, 0x80, 0x7f] {
        for format in QUANTISED {
            let (rows, blocks) = (17, 2);
            let cols = blocks * format.block_len();
            let data = weights(format, &[byte], rows, blocks);
            let matrix = Matrix::new(format, rows, cols, &data).expect("whole blocks");
            for code in [127_i8, -127] {
                for tokens in [1, 5, 8, 17] {
                    let block = format.block_len();
                    let scales = vec![0.5; tokens * blocks];
                    let x = Activations::from_codes(cols, block, vec![code; tokens * cols], scales);
                    let expected = product(&Scalar, &matrix, &x);
                    for level in levels() {
                        let cpu = Cpu::new(Some(1), Some(level)).expect("threads");
                        assert!(
                            product(&cpu, &matrix, &x) == expected,
                            "{format} {byte:#x} x {code} at {level}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn plain_weights_have_the_same_bits_at_every_length() {
    let most = if small() { 40 } else { 130 };
    for format in [Format::F16, Format::F32] {
        for (i, cols) in (1..most).chain([512, 1000]).enumerate() {
            let (rows, tokens) = (i % 21 + 1, i % 7 + 1);
            let data = weights(format, &noise(6000, i as u64), rows, cols);
            compare(
                format,
                rows,
                cols,
                tokens,
                i % 3 + 1,
                &data,
                &values(tokens * cols, i as u64),
            );
        }
    }
}

#[test]
fn plain_weights_have_the_same_bits_with_many_tokens() {
    let shapes: &[(usize, usize, usize)] = if small() {
        &[(5, 64, 13)]
    } else {
        // More values than a slice has, more tokens than a tile and than a task takes, too few rows for all threads.
        &[
            (33, 1056, 12),
            (24, 8192, 50),
            (70, 2048, 101),
            (3, 32, 1000),
            (40, 96, 17),
        ]
    };
    for format in [Format::F16, Format::F32] {
        for (i, (rows, cols, tokens)) in shapes.iter().copied().enumerate() {
            let data = weights(format, &noise(40_000, i as u64), rows, cols);
            compare(
                format,
                rows,
                cols,
                tokens,
                3,
                &data,
                &values(tokens * cols, i as u64),
            );
        }
    }
}

#[test]
fn a_level_that_the_machine_lacks_is_refused() {
    for level in Level::ALL {
        if level.available() {
            assert_eq!(Cpu::new(Some(1), Some(level)).expect("threads").level(), level);
        } else {
            eprintln!("no {level} here: its kernels are compared elsewhere");
            assert!(Cpu::new(Some(1), Some(level)).is_err());
        }
    }
}

/// Values that meet every branch of the rounding.
fn awkward() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -100.0_f32..100.0,
        1 => Just(0.0_f32),
        1 => Just(-0.0_f32),
        1 => prop::num::f32::ANY,
        1 => Just(1e-44_f32),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn quantised_products_are_bit_equal(
        bytes in proptest::collection::vec(any::<u8>(), 200..700),
        values in proptest::collection::vec(-100.0_f32..100.0, 64..300),
        (rows, blocks, tokens, threads) in (1_usize..40, 1_usize..4, 1_usize..40, 1_usize..4),
    ) {
        for format in QUANTISED {
            let cols = blocks * format.block_len();
            let data = weights(format, &bytes, rows, blocks);
            let input: Vec<f32> = values.iter().copied().cycle().take(tokens * cols).collect();
            compare(format, rows, cols, tokens, threads, &data, &input);
        }
    }

    #[test]
    fn activations_are_quantised_to_the_same_bits(
        values in proptest::collection::vec(awkward(), 3 * 1312..3 * 1312 + 1),
        blocks in 1_usize..42,
        tokens in 1_usize..4,
    ) {
        for (form, cols) in [(Form::Q8, blocks * Q8_BLOCK), (Form::Q8K, blocks.div_ceil(10) * 256)] {
            let input = &values[..tokens * cols];
            let expected = format!("{:?}", Activations::new(input, cols, form));
            for level in levels() {
                let cpu = Cpu::new(Some(2), Some(level)).expect("threads");
                prop_assert_eq!(&format!("{:?}", cpu.activations(input, cols, form)), &expected, "{}", level);
            }
        }
    }

    #[test]
    fn dots_and_sums_are_bit_equal(a in proptest::collection::vec(-1e6_f32..1e6, 0..200), factor in -10.0_f32..10.0) {
        for level in levels() {
            let cpu = Cpu::new(Some(1), Some(level)).expect("threads");
            let b: Vec<f32> = a.iter().rev().map(|x| x * 0.37 - 1.0).collect();
            prop_assert_eq!(Scalar.dot(&a, &b).to_bits(), cpu.dot(&a, &b).to_bits());
            let (mut left, mut right) = (b.clone(), b);
            Scalar.axpy(factor, &a, &mut left);
            cpu.axpy(factor, &a, &mut right);
            prop_assert_eq!(bits(&left), bits(&right));
        }
    }
}

/// Gate, up and down. Gate and up share activations, so they can differ within a form.
const EXPERTS: [[Format; 3]; 6] = [
    [Format::Iq2Xxs, Format::Iq2Xxs, Format::Q2K],
    [Format::Q4K, Format::Q4K, Format::Q4K],
    [Format::Mxfp4, Format::Mxfp4, Format::Mxfp4],
    [Format::Q8_0, Format::Q8_0, Format::Q8_0],
    [Format::Q8_0, Format::Mxfp4, Format::Q8_0],
    [Format::F16, Format::F16, Format::F16],
];

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn experts_have_the_bits_of_one_after_the_other(
        seed in any::<u64>(),
        picks in proptest::collection::vec((0_usize..5, 0.0_f32..2.0), 160),
        (tokens, used, threads) in (1_usize..80, 1_usize..3, 1_usize..4),
    ) {
        let (count, n_ff, n_embd) = (5, 256, 512);
        for [upper, other, lower] in EXPERTS {
            let random = |format: Format, rows: usize, cols: usize, seed: u64| {
                weights(format, &noise(9000, seed), rows, cols / format.block_len())
            };
            let (gate, up) = (random(upper, count * n_ff, n_embd, seed), random(other, count * n_ff, n_embd, !seed));
            let down = random(lower, count * n_embd, n_ff, seed ^ 5);
            for form in [Form::F32, Form::of(lower)] {
                let experts = Experts {
                    gate: Matrix::new(upper, count * n_ff, n_embd, &gate).expect("whole blocks"),
                    up: Matrix::new(other, count * n_ff, n_embd, &up).expect("whole blocks"),
                    down: Matrix::new(lower, count * n_embd, n_ff, &down).expect("whole blocks"),
                    count,
                    clamp: 3.0,
                    form,
                };
                let choice = |(expert, weight): &(usize, f32)| Choice { expert: *expert, weight: *weight };
                let choices: Vec<Choice> = picks.iter().take(tokens * used).map(choice).collect();
                let input = values(tokens * n_embd, seed);
                let x = Activations::new(&input, n_embd, if form == Form::F32 { form } else { Form::of(upper) });
                let mut expected = vec![f32::NAN; choices.len() * n_embd];
                Scalar.experts(&experts, &choices, &x, &mut expected);
                for level in levels() {
                    let mut found = vec![f32::NAN; choices.len() * n_embd];
                    let cpu = Cpu::new(Some(threads), Some(level)).expect("threads");
                    cpu.experts(&experts, &choices, &x, &mut found);
                    prop_assert!(bits(&found) == bits(&expected), "{} {} {} at {}", upper, other, lower, level);
                }
            }
        }
    }
}

#[test]
fn a_large_product_is_the_same_on_any_number_of_threads() {
    let (rows, cols) = if small() { (70, 64) } else { (700, 512) };
    let data = weights(Format::Q8_0, &noise(9999, 1), rows, cols / Q8_BLOCK);
    for threads in 1..=4 {
        compare(Format::Q8_0, rows, cols, 3, threads, &data, &values(3 * cols, 3));
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

#[test]
fn a_panic_in_a_task_is_the_callers() {
    let cpu = Cpu::new(Some(3), None).expect("threads");
    let region = std::panic::AssertUnwindSafe(|| cpu.parallel(20, &|i| assert!(i != 11, "task {i}")));
    let panic = std::panic::catch_unwind(region).expect_err("task 11 panics");
    assert_eq!(
        panic.downcast_ref::<String>().map(String::as_str),
        Some("task 11")
    );
}
