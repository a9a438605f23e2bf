//! Random operands, and how results are compared.

use ds4_kernels::{Format, Matrix};

/// Compares bits, and says where they differ first.
#[track_caller]
pub fn assert_bits(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let differ = expected
        .iter()
        .zip(found)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differ {
        let count = expected
            .iter()
            .zip(found)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        panic!(
            "{what}: {count} of {} differ, first {at}: expected {}, found {}",
            expected.len(),
            expected[at],
            found[at]
        );
    }
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Random rows of a format; scales of ordinary size.
pub fn rows(random: &mut Random, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let blocks = rows * cols / format.block_len();
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next() as u8)
        .take(blocks * format.block_bytes())
        .collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let mut half = |at: usize| {
            // A half between 1/64 and 1/4 of either sign.
            let bits = random.next();
            let value = (bits & 0x83ff) as u16 | ((9 + bits / 0x10000 % 4) as u16) << 10;
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match format {
            Format::Q2K => [80, 82].map(&mut half),
            Format::Q4K => [0, 2].map(&mut half),
            Format::F32 => {
                block.copy_from_slice(&random.uniform().to_le_bytes());
                continue;
            }
            _ => [half(0), ()],
        };
    }
    bytes
}

pub fn matrix(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Matrix<'_> {
    Matrix::new(format, rows, cols, bytes).unwrap()
}
