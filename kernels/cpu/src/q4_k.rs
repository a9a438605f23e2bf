//! What `Q4_K` packs into twelve bytes of a block, for every level with vectors.

/// The eight six-bit scales, and the eight minimums, of a block as bytes.
#[inline]
pub(crate) fn scales(block: &[u8; 144]) -> (u64, u64) {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    let (six, two) = (0x3f3f_3f3f, 0x0303_0303);
    let scales = u64::from(a & six) | u64::from(c & 0x0f0f_0f0f | (a >> 6 & two) << 4) << 32;
    let minimums = u64::from(b & six) | u64::from(c >> 4 & 0x0f0f_0f0f | (b >> 6 & two) << 4) << 32;
    (scales, minimums)
}
