//! The printable letters that stand for bytes in byte-level vocabularies.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Byte of each letter: printable Latin-1 stands for itself, the others follow from U+0100 in order.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=255u8).filter(printable).map(|byte| (char::from(byte), byte));
    let others = (0..=255u8).filter(|byte| !printable(byte)).zip(256u32..);
    own.chain(others.filter_map(|(byte, letter)| Some((char::from_u32(letter)?, byte))))
        .collect()
});

/// The bytes of a token's letters; `None` when one of them stands for no byte.
pub(crate) fn decode(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|letter| BYTES.get(&letter).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_letter() {
        assert_eq!(BYTES.len(), 256);
        assert_eq!(decode("ĠA"), Some(b" A".to_vec()));
        assert_eq!(decode("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(decode("｜"), None);
    }
}
