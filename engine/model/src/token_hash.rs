//! The hash that guards every hop: two timelines with equal frontier and hash hold the same tokens.

use std::fmt;

/// Rolling FNV-1a 64 over little-endian token ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TokenHash(u64);

/// Standard offset basis and prime of FNV-1a 64.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

impl Default for TokenHash {
    fn default() -> Self {
        Self(OFFSET)
    }
}

impl TokenHash {
    /// A hash that came over the wire.
    #[must_use]
    pub const fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// The hash of no tokens, followed by `tokens`.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut hash = Self::default();
        hash.extend(tokens);
        hash
    }

    /// Appends tokens.
    pub fn extend(&mut self, tokens: &[u32]) {
        for byte in tokens.iter().flat_map(|token| token.to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a_and_does_not_see_how_tokens_were_grouped() {
        assert_eq!(TokenHash::default().value(), OFFSET);
        // FNV-1a 64 of the bytes 61 00 00 00, computed with an independent implementation.
        let mut expected = OFFSET;
        for byte in [0x61_u64, 0, 0, 0] {
            expected = (expected ^ byte).wrapping_mul(1_099_511_628_211);
        }
        assert_eq!(TokenHash::of(&[0x61]).value(), expected);
        let mut parts = TokenHash::of(&[1, 2]);
        parts.extend(&[3]);
        assert_eq!(parts, TokenHash::of(&[1, 2, 3]));
        assert_ne!(parts, TokenHash::of(&[1, 3, 2]));
    }
}
