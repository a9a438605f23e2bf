//! 64 consecutive values of one row as bytes.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, __mmask64, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_loadu_si256, _mm256_set1_epi8, _mm256_shuffle_epi8, _mm256_srlv_epi16, _mm256_storeu_si256,
    _mm512_add_epi8, _mm512_add_epi64, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castsi256_si512,
    _mm512_castsi512_si256, _mm512_gf2p8affine_epi64_epi8, _mm512_i64gather_epi64, _mm512_inserti64x4,
    _mm512_loadu_si512, _mm512_mask_add_epi8, _mm512_mask_sub_epi8, _mm512_maskz_mov_epi8,
    _mm512_maskz_permutexvar_epi8, _mm512_multishift_epi64_epi8, _mm512_or_si512, _mm512_permutexvar_epi8,
    _mm512_set1_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi64,
    _mm512_srlv_epi16, _mm512_test_epi8_mask, _mm512_xor_si512,
};

use ds4_kernels::E2M1_DOUBLED;
use ds4_kernels::grid::GRID as MAGNITUDES_OF;

/// Values of a chunk.
pub(crate) const CHUNK: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Table<T, const N: usize>(pub(super) [T; N]);

impl<T, const N: usize> Table<T, N> {
    /// Register `i` of the table.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(super) fn register(&self, i: usize) -> __m512i {
        assert!((i + 1) * 64 <= size_of::<Self>());
        // SAFETY: 64 bytes from there on are inside the table, as just checked.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().cast::<__m512i>().add(i)) }
    }
}

/// The 16 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn load16(bytes: &[u8], at: usize) -> __m128i {
    let part = &bytes[at..at + 16];
    // SAFETY: the slice was just taken; the load needs no alignment.
    unsafe { _mm_loadu_si128(part.as_ptr().cast()) }
}

/// The 32 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn load32(bytes: &[u8], at: usize) -> __m256i {
    let part = &bytes[at..at + 32];
    // SAFETY: the slice was just taken; the load needs no alignment.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

/// The 64 codes from `at` on.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn load64(codes: &[i8], at: usize) -> __m512i {
    let part = &codes[at..at + 64];
    // SAFETY: the slice was just taken; the load needs no alignment.
    unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
}

/// `low` in the lower half, `high` in the upper.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Two `MXFP4` blocks (or the last one alone), offset to unsigned.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn mxfp4(blocks: &[[u8; 17]], chunk: usize) -> __m512i {
    let low = load16(&blocks[2 * chunk], 1);
    let high = blocks.get(2 * chunk + 1).map_or(low, |block| load16(block, 1));
    let twice = join(
        _mm256_broadcastsi128_si256(low),
        _mm256_broadcastsi128_si256(high),
    );
    // The high nibbles are the second half of a block.
    let nibbles = _mm512_srlv_epi16(twice, SHIFTS_MXFP4.register(0));
    _mm512_shuffle_epi8(E2M1.register(0), _mm512_and_si512(nibbles, _mm512_set1_epi8(15)))
}

/// One `MXFP4` block, offset to unsigned.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn mxfp4_block(block: &[u8; 17]) -> __m256i {
    let shifts = _mm512_castsi512_si256(SHIFTS_MXFP4.register(0));
    let nibbles = _mm256_srlv_epi16(_mm256_broadcastsi128_si256(load16(block, 1)), shifts);
    let codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
    _mm256_shuffle_epi8(_mm512_castsi512_si256(E2M1.register(0)), codes)
}

/// Codes 0 to 3 of a `Q2_K` block.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn q2_k(block: &[u8; 84], chunk: usize) -> __m512i {
    let bytes = load32(block, 16 + chunk / 2 * 32);
    let shifted = _mm512_srlv_epi16(join(bytes, bytes), SHIFTS_Q2K.register(chunk % 2));
    _mm512_and_si512(shifted, _mm512_set1_epi8(3))
}

/// The same, times their sub-block scales: at most 3 * 15.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn q2_k_scaled(block: &[u8; 84], chunk: usize) -> __m512i {
    let codes = q2_k(block, chunk);
    let scales = _mm512_and_si512(_mm512_broadcast_i32x4(load16(block, 0)), _mm512_set1_epi8(15));
    // One scale to 16 values: byte `4 * chunk + i` all over quarter `i`.
    let scale = _mm512_shuffle_epi8(
        scales,
        _mm512_add_epi8(QUARTERS.register(0), broadcast(4 * chunk)),
    );
    let one = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(1));
    let two = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(2));
    let product = _mm512_maskz_mov_epi8(one, scale);
    _mm512_mask_add_epi8(product, two, product, _mm512_add_epi8(scale, scale))
}

/// Codes 0 to 15 of a `Q4_K` block.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn q4_k(block: &[u8; 144], chunk: usize) -> __m512i {
    let bytes = load32(block, 16 + chunk * 32);
    let shifted = _mm512_srlv_epi16(join(bytes, bytes), SHIFTS_Q4K.register(0));
    _mm512_and_si512(shifted, _mm512_set1_epi8(15))
}

/// An `IQ2_XXS` block: eight groups of four grid indices, four sign fields of seven bits and a scale of four bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq2 {
    /// The block without its scale.
    groups: __m512i,
    /// The sign bits of each chunk.
    signs: [__mmask64; 4],
    /// Dword 2 g: the odd step of group `g`.
    pub(crate) steps: __m512i,
}

impl Iq2 {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(crate) fn new(block: &[u8; 66]) -> Self {
        let groups = {
            let part = &block[2..66];
            // SAFETY: the slice was just taken: 64 bytes; the load needs no alignment.
            unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
        };
        // Bits 32, 39, 46 and 53 on of each group; the eighth bit is made of the seven.
        let fields = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e_2720_352e_2720), groups);
        let bytes = _mm512_gf2p8affine_epi64_epi8::<0>(fields, _mm512_set1_epi64(EIGHTH_SIGN));
        let bytes = _mm512_castsi512_si256(_mm512_permutexvar_epi8(FOURS.register(0), bytes));
        let mut signs = [0_u64; 4];
        // SAFETY: the array is 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(signs.as_mut_ptr().cast(), bytes) };
        let scale = _mm512_srli_epi64::<60>(groups);
        Self {
            groups,
            signs,
            steps: _mm512_or_si512(_mm512_add_epi64(scale, scale), _mm512_set1_epi64(1)),
        }
    }

    /// Magnitudes of a chunk, and which of them are negative.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(crate) fn chunk(&self, chunk: usize) -> (__m512i, __mmask64) {
        // Each index to eight bytes, of which it is the lowest: at most 255, the entries of the codebook.
        let indices =
            _mm512_maskz_permutexvar_epi8(0x0101_0101_0101_0101, INDEX_OF.register(chunk), self.groups);
        // SAFETY: the codebook has 256 entries of eight bytes.
        let magnitudes = unsafe { _mm512_i64gather_epi64::<8>(indices, GRID.0.as_ptr().cast()) };
        (magnitudes, self.signs[chunk])
    }

    /// A chunk with its signs, offset to unsigned.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(crate) fn unsigned(&self, chunk: usize) -> __m512i {
        let (magnitudes, minus) = self.chunk(chunk);
        let signed = _mm512_mask_sub_epi8(magnitudes, minus, _mm512_setzero_si512(), magnitudes);
        _mm512_xor_si512(signed, _mm512_set1_epi8(i8::MIN))
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // below 16
fn broadcast(byte: usize) -> __m512i {
    _mm512_set1_epi8(byte as i8)
}

/// Seven stored bits to eight signs, as a matrix of bits: the eighth is the sum of all, so that the number of minus signs is even.
pub(super) const EIGHTH_SIGN: i64 = 0x0102_0408_1020_407f;

static E2M1: Table<u8, 64> = Table(e2m1_unsigned());
static SHIFTS_MXFP4: Table<u16, 32> = Table(shifts(8, 4));
static SHIFTS_Q4K: Table<u16, 32> = Table(shifts(16, 4));
static SHIFTS_Q2K: Table<u16, 64> = Table(shifts_q2_k());
static QUARTERS: Table<u8, 64> = Table(quarters());
static GRID: Table<[i8; 8], 256> = Table(MAGNITUDES_OF);
static INDEX_OF: Table<u8, 256> = Table(index_of());
static FOURS: Table<u8, 64> = Table(fours());

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // -12 to 12, offset
const fn e2m1_unsigned() -> [u8; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (E2M1_DOUBLED[i % 16] as i32 + ds4_kernels::OFFSET) as u8;
        i += 1;
    }
    table
}

/// Every other run of `run` words is shifted by `by`.
const fn shifts(run: usize, by: u16) -> [u16; 32] {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        table[i] = (i / run % 2) as u16 * by;
        i += 1;
    }
    table
}

/// 32 bytes hold 128 values: two bits further every 32 values.
const fn shifts_q2_k() -> [u16; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = 2 * (i / 16) as u16;
        i += 1;
    }
    table
}

/// The number of the quarter.
const fn quarters() -> [u8; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (i / 16) as u8;
        i += 1;
    }
    table
}

/// Where the index of values `8 i` on is: four to a group of eight bytes.
const fn index_of() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = (i / 8 / 4 * 8 + i / 8 % 4) as u8;
        i += 1;
    }
    table
}

/// The first four bytes of every eight.
const fn fours() -> [u8; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (i % 32 / 4 * 8 + i % 4) as u8;
        i += 1;
    }
    table
}
