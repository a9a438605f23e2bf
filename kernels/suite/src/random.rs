//! Random numbers and operands.

use ds4_kernels::Format;

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)] // no iterator: it never ends
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    #[allow(clippy::cast_precision_loss)] // 24 bits
    pub const fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Values in [-1, 1).
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    /// Below `bound`, which is not 0.
    #[allow(clippy::cast_possible_truncation)] // the rest is below `bound`
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From `least` to `most`, both included.
    pub const fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// Values of all sizes: zeros, subnormals, ties and what is beyond the small formats.
    #[allow(clippy::cast_precision_loss)] // small integers
    pub fn wild(&mut self, count: usize) -> Vec<f32> {
        let value = |random: &mut Self| match random.below(12) {
            0 => 0.0,
            1 => -0.0,
            2 => 1e-41,
            3 => 3.4e38 * random.uniform(),
            4 => (random.below(64) as f32 - 32.0) * 0.25,
            5 => random.uniform() * 1e-6,
            _ => random.uniform() * 4.0,
        };
        (0..count).map(|_| value(self)).collect()
    }

    /// Random rows of a format; scales of ordinary size.
    #[allow(clippy::cast_possible_truncation)] // a byte of a random number
    pub fn rows(&mut self, format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let blocks = rows * cols / format.block_len();
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| self.next() as u8)
            .take(blocks * format.block_bytes())
            .collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            self.set_scales(format, block);
        }
        bytes
    }

    fn set_scales(&mut self, format: Format, block: &mut [u8]) {
        let offsets: &[usize] = match format {
            Format::F32 => {
                block.copy_from_slice(&self.uniform().to_le_bytes());
                return;
            }
            // A power of two's exponent: near 2^-7, or one of the two that stand for subnormal factors.
            Format::Mxfp4 => {
                block[0] = match self.below(8) {
                    small @ 0..=1 => small as u8,
                    _ => 118 + block[0] % 5,
                };
                return;
            }
            Format::Q2K => &[80, 82],
            Format::Q4K => &[0, 2],
            _ => &[0],
        };
        for at in offsets {
            let value = half::f16::from_f32(self.uniform() * 0.1);
            block[*at..*at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
}
