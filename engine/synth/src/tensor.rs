//! One tensor's bytes, made in parts.

use std::sync::OnceLock;

use ds4_kernels::{Format, dequantize_row};
use half::f16;

use crate::noise::Noise;

/// Elements made at once: bounds memory.
const PART: usize = 1 << 18;
/// Blocks whose spread stands for a format's.
const PROBE_BLOCKS: u64 = 4096;

/// How values are drawn.
#[derive(Clone, Debug)]
pub(crate) enum Draw {
    /// Uniform in `offset +- spread`, stored as `F32` or `F16`.
    Uniform { spread: f64, offset: f64 },
    /// Random blocks scaled to a standard deviation.
    Blocks { std: f64 },
    /// Distinct experts for every token: `[n_vocab][used]`.
    Experts { used: usize, count: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// GGUF order: the fastest first.
    pub(crate) dims: Vec<usize>,
    pub(crate) format: Format,
    pub(crate) draw: Draw,
}

impl Tensor {
    fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.elements() / self.format.block_len() * self.format.block_bytes()) as u64
    }

    /// Hands the bytes to `put`, in order.
    pub(crate) fn write(
        &self,
        seed: u64,
        put: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let noise = Noise::new(&self.name, seed);
        let part = match self.draw {
            Draw::Experts { used, .. } => PART / used * used,
            _ => PART,
        };
        for start in (0..self.elements()).step_by(part) {
            let end = (start + part).min(self.elements());
            put(&self.part(noise, start as u64, end as u64))?;
        }
        Ok(())
    }

    fn part(&self, noise: Noise, start: u64, end: u64) -> Vec<u8> {
        match self.draw {
            Draw::Uniform { spread, offset } => uniform(self.format, noise, start..end, spread, offset),
            Draw::Experts { used, count } => (start..end)
                .step_by(used)
                .flat_map(|i| experts(noise, i, used, count))
                .collect(),
            Draw::Blocks { std } => {
                let length = self.format.block_len() as u64;
                #[allow(clippy::cast_possible_truncation)] // halves are meant
                let d = nearest(std / unit_std(self.format));
                (start / length..end / length)
                    .flat_map(|block| block_bytes(self.format, noise, block, d))
                    .collect()
            }
        }
    }
}

fn uniform(format: Format, noise: Noise, range: std::ops::Range<u64>, spread: f64, offset: f64) -> Vec<u8> {
    let value = |i| noise.uniform(i) * spread + offset;
    if format == Format::F16 {
        return range.flat_map(|i| nearest(value(i)).to_le_bytes()).collect();
    }
    #[allow(clippy::cast_possible_truncation)] // rounding is meant
    range.flat_map(|i| (value(i) as f32).to_le_bytes()).collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)] // eleven bits
/// The nearest half, ties to even, rounded once. (`f16::from_f64` rounds twice where the processor converts by way of `f32`.)
fn nearest(x: f64) -> f16 {
    // Halves have ten bits of mantissa; below 2^-14 their spacing no longer shrinks.
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-14);
    let step = f64::from_bits(((exponent - 10 + 1023) as u64) << 52);
    f16::from_f64((x / step).round_ties_even() * step)
}

/// Expert `word % count`, moved on until it differs from those before it.
fn experts(noise: Noise, first: u64, used: usize, count: u64) -> Vec<u8> {
    let mut chosen: Vec<u64> = Vec::with_capacity(used);
    for i in first..first + used as u64 {
        let mut expert = noise.word(i) % count;
        while chosen.contains(&expert) {
            expert = (expert + 1) % count;
        }
        chosen.push(expert);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // expert numbers
    chosen
        .into_iter()
        .flat_map(|expert| (expert as i32).to_le_bytes())
        .collect()
}

/// Random codes under a constant scale.
fn block_bytes(format: Format, noise: Noise, block: u64, d: f16) -> Vec<u8> {
    let times = |factor: f32| f16::from_f32(d.to_f32() * factor).to_le_bytes();
    let codes = |count: u64| (block * count..(block + 1) * count).map(|i| noise.byte(i));
    let scale = d.to_le_bytes();
    match format {
        // -128 has no counterpart: formats of this family never hold it.
        Format::Q8_0 => scale
            .into_iter()
            .chain(codes(32).map(|code| if code == 128 { 129 } else { code }))
            .collect(),
        Format::Iq2Xxs => scale.into_iter().chain(codes(64)).collect(),
        // Minimums of one and a half steps centre the codes 0 to 3, of seven and a half those of 0 to 15.
        Format::Q2K => codes(80).chain(scale).chain(times(1.5)).collect(),
        Format::Q4K => scale.into_iter().chain(times(7.5)).chain(codes(140)).collect(),
        Format::Mxfp4 => {
            let mut bytes: Vec<u8> = codes(17).collect();
            bytes[0] = power_of_two(d.to_f64(), bytes[0]);
            bytes
        }
        Format::F32 | Format::F16 | Format::I32 => unreachable!("{format} is drawn value by value"),
    }
}

/// The exponent byte of the power of two below or above `scale`, drawn so that the mean square is that of `scale`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // exponents of halves
fn power_of_two(scale: f64, draw: u8) -> u8 {
    let exponent = scale.log2().floor();
    let square = (scale / exponent.exp2()).powi(2);
    let above = f64::from(draw) < 256.0 * (square - 1.0) / 3.0;
    (exponent + 127.0) as u8 + u8::from(above)
}

/// Standard deviation of random blocks of scale 1.
fn unit_std(format: Format) -> f64 {
    static STD: [OnceLock<f64>; 5] = [const { OnceLock::new() }; 5];
    let slot = match format {
        Format::Q8_0 => 0,
        Format::Q2K => 1,
        Format::Q4K => 2,
        Format::Mxfp4 => 3,
        _ => 4,
    };
    *STD[slot].get_or_init(|| probe(format))
}

#[allow(clippy::cast_precision_loss)] // a million values
fn probe(format: Format) -> f64 {
    let noise = Noise::new("unit-probe", 0);
    let mut values = vec![0.0f32; format.block_len()];
    let (mut sum, mut squares) = (0.0, 0.0);
    for block in 0..PROBE_BLOCKS {
        dequantize_row(format, &block_bytes(format, noise, block, f16::ONE), &mut values);
        for value in &values {
            sum += f64::from(*value);
            squares += f64::from(*value) * f64::from(*value);
        }
    }
    let count = (PROBE_BLOCKS * format.block_len() as u64) as f64;
    (squares / count - (sum / count) * (sum / count)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_once() {
        // Just above the middle of 1 and the next half: by way of f32 it would become the tie and then 1.
        let above = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        assert_eq!(nearest(above).to_bits(), f16::ONE.to_bits() + 1);
        assert_eq!(nearest(1.0 + f64::powi(2.0, -11)), f16::ONE, "a tie goes to even");
        assert_eq!(nearest(0.0), f16::ZERO);
        assert_eq!(nearest(f64::powi(2.0, -24)).to_bits(), 1);
    }

    #[test]
    fn powers_of_two_meet_a_scale_between_them_in_the_mean_square() {
        for scale in [1.0, 1.3, 0.007] {
            let squares =
                (0..=255).map(|draw| f64::powi(2.0, i32::from(power_of_two(scale, draw)) - 127).powi(2));
            let mean = squares.sum::<f64>() / 256.0;
            assert!((mean / (scale * scale) - 1.0).abs() < 0.01, "{scale}: {mean}");
        }
    }
}
