//! How fast this machine multiplies: the share of the int8 peak that prefill's products reach.
//!
//! Products and the loop of the peak run in turn, by the same threads and for the same operations, since what else is on a machine (and on the
//! other halves of its cores) changes what it gives within seconds: a share is of the peak of its own second.

use std::hint::black_box;
use std::time::Instant;

pub use ds4_kernels::Format;
use ds4_kernels::{Activations, Backend, Form, Matrix};

use crate::{Cpu, CpuError, roofline};

/// Columns and rows of the measured matrix: the hidden size of the medium model.
const SIZE: usize = 2048;
/// Products and peaks in turn; the best of each counts: other work on the machine only ever lowers them.
const ROUNDS: usize = 25;
/// Parts of the peak's loop for each thread, claimed as those of a product are.
const PARTS: usize = 8;

/// What products reach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Speed {
    /// 8-bit operations per second; a multiply and an add are two.
    pub operations_per_second: f64,
    /// Those over the peak of vectors, by the loop of [`Roofline`](crate::Roofline).
    pub share: f64,
}

/// A matrix of `format` times `tokens` tokens, on `threads` threads.
///
/// # Errors
/// When the threads cannot be started.
///
/// # Panics
/// When `format` has no 8-bit activations.
pub fn measure(format: Format, tokens: usize, threads: usize) -> Result<Speed, CpuError> {
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
    let operations = 2 * SIZE * SIZE * tokens;
    let (mut product, mut peak) = (0.0_f64, 0.0_f64);
    for _ in 0..ROUNDS {
        product = product.max(rate(operations, || cpu.matmul(&matrix, &x, black_box(&mut y))));
        peak = peak.max(registers(&cpu, operations));
    }
    Ok(Speed {
        operations_per_second: product,
        share: product / peak,
    })
}

/// Operations per second of about so many from registers to registers.
fn registers(cpu: &Cpu, operations: usize) -> f64 {
    let (_, of_step, multiply) = roofline::int8();
    let parts = PARTS * cpu.threads();
    let steps = (operations / (parts * of_step)).max(1);
    rate(parts * steps * of_step, || {
        cpu.parallel(parts, &|_| multiply(steps))
    })
}

#[allow(clippy::cast_precision_loss)] // a few times 10^9
fn rate(operations: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    operations as f64 / start.elapsed().as_secs_f64()
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
            let speed = measure(format, 1, 1).expect("threads");
            let found = [speed.operations_per_second, speed.share];
            assert!(
                found.iter().all(|x| x.is_finite() && *x > 0.0),
                "{format}: {speed:?}"
            );
        }
    }
}
