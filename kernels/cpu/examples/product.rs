//! One product so many times, on one thread: for tools that count instructions.
//!
//! `product LEVEL FORMAT ROWS COLUMNS TOKENS TIMES`

use std::hint::black_box;

use ds4_kernels::{Activations, Backend, Form, Format, Matrix};
use ds4_kernels_cpu::{Cpu, Level};

const FORMATS: [Format; 7] = [
    Format::Q8_0,
    Format::Q2K,
    Format::Q4K,
    Format::Iq2Xxs,
    Format::Mxfp4,
    Format::F16,
    Format::F32,
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [level, format, rows, cols, tokens, times] = arguments.as_slice() else {
        panic!("product LEVEL FORMAT ROWS COLUMNS TOKENS TIMES, found {arguments:?}")
    };
    let level = Level::ALL.into_iter().find(|known| known.to_string() == *level);
    let format = FORMATS.into_iter().find(|known| known.to_string() == *format);
    let (level, format) = (level.expect("a level"), format.expect("a format"));
    let [rows, cols, tokens, times] =
        [rows, cols, tokens, times].map(|n| n.parse::<usize>().expect("a number"));
    let cpu = Cpu::new(Some(1), Some(level)).expect("the level");
    let weights = vec![0x21; rows * cols / format.block_len() * format.block_bytes()];
    let matrix = Matrix::new(format, rows, cols, &weights).expect("whole blocks");
    let values: Vec<f32> = (0..tokens * cols).map(|i| (i % 251) as f32 - 125.0).collect();
    let x = Activations::new(&values, cols, Form::of(format));
    let mut y = vec![0.0; tokens * rows];
    for _ in 0..times {
        cpu.matmul(&matrix, &x, black_box(&mut y));
    }
}
