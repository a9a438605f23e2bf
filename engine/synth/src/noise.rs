//! The generator: a word for every tensor name, index and seed.

/// Weyl increment of splitmix64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The words of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    base: u64,
}

impl Noise {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { base: hash ^ seed }
    }

    /// Word `i`: splitmix64's finaliser of the `i + 1`th step.
    pub(crate) const fn word(self, i: u64) -> u64 {
        let z = self.base.wrapping_add(i.wrapping_add(1).wrapping_mul(GAMMA));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Byte `i` of the words, little-endian.
    #[allow(clippy::cast_possible_truncation)] // the low byte is meant
    pub(crate) const fn byte(self, i: u64) -> u8 {
        (self.word(i / 8) >> (8 * (i % 8))) as u8
    }

    /// In [-1, 1), 24 bits.
    #[allow(clippy::cast_precision_loss)] // 24 bits fit
    pub(crate) fn uniform(self, i: u64) -> f64 {
        (self.word(i) >> 40) as f64 / 8_388_608.0 - 1.0
    }
}
