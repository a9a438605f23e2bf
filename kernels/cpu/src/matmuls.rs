//! How fast this machine multiplies: the share of the int8 peak that prefill's products reach.

use std::hint::black_box;
use std::time::Instant;

pub use ds4_kernels::Format;
use ds4_kernels::{Activations, Backend, Form, Matrix};

use crate::{Cpu, CpuError};

/// Columns and rows of the measured matrix: the hidden size of the medium model.
const SIZE: usize = 2048;
/// The best of so many rounds, as of the peak.
const ROUNDS: usize = 7;

/// 8-bit operations per second (a multiply and an add are two) of a matrix of `format` times `tokens` tokens, on `threads` threads.
///
/// # Errors
/// When the threads cannot be started.
///
/// # Panics
/// When `format` has no 8-bit activations.
pub fn operations_per_second(format: Format, tokens: usize, threads: usize) -> Result<f64, CpuError> {
    let cpu = Cpu::new(Some(threads), None)?;
    let weights = noise(SIZE * SIZE / format.block_len() * format.block_bytes());
    let Ok(matrix) = Matrix::new(format, SIZE, SIZE, &weights) else {
        unreachable!("as many bytes as the shape takes")
    };
    let values: Vec<f32> = (0..tokens * SIZE)
        .map(|i| f32::from((i % 251) as u8) / 125.0 - 1.0)
        .collect();
    let x = Activations::new(&values, SIZE, Form::of(format));
    let mut y = vec![0.0; tokens * SIZE];
    let mut once = || {
        let start = Instant::now();
        cpu.matmul(&matrix, &x, black_box(&mut y));
        start.elapsed().as_secs_f64()
    };
    let best = (0..ROUNDS).map(|_| once()).fold(f64::MAX, f64::min);
    #[allow(clippy::cast_precision_loss)] // a few times 10^9
    let operations = (2 * SIZE * SIZE * tokens) as f64;
    Ok(operations / best)
}

/// Bytes of which any two are a half of middling size, and any one a scale of `MXFP4` that is no subnormal.
fn noise(count: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed.to_le_bytes()[7] & 0x1f | 0x20
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(miri))]
    fn every_format_of_weights_is_measured() {
        for format in [
            Format::Q8_0,
            Format::Q2K,
            Format::Q4K,
            Format::Iq2Xxs,
            Format::Mxfp4,
        ] {
            let rate = operations_per_second(format, 1, 1).expect("threads");
            assert!(rate.is_finite() && rate > 0.0, "{format}: {rate}");
        }
    }
}
