//! `IQ2_XXS` rows times a few tokens, by planes: value `p` of every grid pattern lies in plane `p`, so that patterns are looked up in registers.
//!
//! A pattern is 16 bits, two for each of its eight magnitudes. To gather patterns as values, in the order of the tokens' codes, takes twice as
//! long as memory does (`examples/kernels.rs`); so the codes are put in the order of planes instead, once for all rows.

use std::arch::x86_64::{
    __m256i, __m512i, _mm512_dpbusd_epi32, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512,
    _mm512_mask_permutexvar_epi8, _mm512_movepi8_mask, _mm512_mullo_epi32, _mm512_multishift_epi64_epi8,
    _mm512_or_si512, _mm512_permutex2var_epi32, _mm512_permutex2var_epi64, _mm512_permutexvar_epi8,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi16,
    _mm512_srli_epi16, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32,
    _mm512_test_epi8_mask,
};
use std::array::from_fn;
use std::cell::RefCell;

use ds4_kernels::grid::{MAGNITUDES, PATTERNS};
use ds4_kernels::{OFFSET, Q8K_BLOCK};

use super::chunk::{CHUNK, EIGHTH_SIGN, Table, load64};
use super::fold::sums_of_halves;
use super::pairs::twice;
use crate::operands::Token;

/// Values of a pattern.
const PLANES: usize = 8;
/// Patterns of a block.
const PATTERNS_OF: usize = Q8K_BLOCK / PLANES;

/// The codes of one block of a token: `[plane][pattern]`.
pub(super) type Planes = [[i8; PATTERNS_OF]; PLANES];

thread_local! {
    static SCRATCH: RefCell<Vec<Planes>> = const { RefCell::new(Vec::new()) };
}

/// Lends the blocks of each token in the order of planes, in memory that this thread keeps.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn with<const T: usize, R>(
    tokens: &[Token<'_>; T],
    use_them: impl FnOnce([&[Planes]; T]) -> R,
) -> R {
    SCRATCH.with_borrow_mut(|all| {
        all.clear();
        for token in tokens {
            for codes in token.codes.as_chunks().0 {
                all.push(planes(codes));
            }
        }
        let blocks = all.len() / T;
        use_them(from_fn(|t| &all[t * blocks..(t + 1) * blocks]))
    })
}

/// Bytes become planes within each 64 codes, then those of all four go beside each other.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn planes(codes: &[i8; Q8K_BLOCK]) -> Planes {
    let turned = |chunk: usize| _mm512_permutexvar_epi8(TURN.register(0), load64(codes, CHUNK * chunk));
    let [a, b, c, d] = [turned(0), turned(1), turned(2), turned(3)];
    let mut planes = [[0; PATTERNS_OF]; PLANES];
    for (i, out) in planes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (ab, cd) = (
            _mm512_permutex2var_epi64(a, BESIDE.register(i), b),
            _mm512_permutex2var_epi64(c, BESIDE.register(i), d),
        );
        for (half, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let two = _mm512_permutex2var_epi64(ab, BESIDE.register(2 + half), cd);
            // SAFETY: 64 bytes, the size of the array.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), two) };
        }
    }
    planes
}

/// The integers of one block of eight rows with each token, whose `offsets` are those of the block.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn dots<const T: usize>(
    blocks: &[&[u8; 66]; 8],
    planes: [&Planes; T],
    offsets: [&[i32; 8]; T],
) -> [__m256i; T] {
    let mut all = [[_mm512_setzero_si512(); 4]; T];
    for i in 0..4 {
        let two = Two::new(blocks[i], blocks[i + 4]);
        let mut dots = [_mm512_setzero_si512(); T];
        for t in 0..T {
            dots[t] = twice(offsets[t]);
        }
        for pair in 0..PLANES / 2 {
            let weights = two.weights(pair);
            for t in 0..T {
                for (i, weights) in weights.into_iter().enumerate() {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], weights, twice(&planes[t][2 * pair + i]));
                }
            }
        }
        for t in 0..T {
            all[t][i] = _mm512_mullo_epi32(dots[t], two.steps);
        }
    }
    let mut out = [sums_of_halves(&all[0]); T];
    for t in 1..T {
        out[t] = sums_of_halves(&all[t]);
    }
    out
}

/// One block of two rows: a lane for each group of four patterns, those of the second row in the upper half.
struct Two {
    /// Magnitudes of values 0 to 3 and 4 to 7 of each pattern, two bits each.
    low: __m512i,
    high: __m512i,
    /// Eight bits for each pattern.
    signs: __m512i,
    /// Odd integers, one for each group.
    steps: __m512i,
}

impl Two {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn new(first: &[u8; 66], second: &[u8; 66]) -> Self {
        let (first, second) = (groups(first), groups(second));
        let indices = _mm512_permutex2var_epi32(first, EVEN.register(0), second);
        let rest = _mm512_permutex2var_epi32(first, EVEN.register(1), second);
        // Bits 0, 7, 14 and 21 on of each group; the eighth bit is made of the seven.
        let fields = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e_2720_150e_0700), rest);
        let upper = _mm512_movepi8_mask(indices);
        let odd = _mm512_test_epi8_mask(indices, _mm512_set1_epi8(0x40));
        let look_up = |table: &Table<u8, 256>| {
            let of = |quarter| table.register(quarter);
            let first = _mm512_permutexvar_epi8(indices, of(0));
            let second = _mm512_mask_permutexvar_epi8(first, odd, indices, of(1));
            let third = _mm512_mask_permutexvar_epi8(second, upper, indices, of(2));
            _mm512_mask_permutexvar_epi8(third, odd & upper, indices, of(3))
        };
        Self {
            low: look_up(&LOW),
            high: look_up(&HIGH),
            signs: _mm512_gf2p8affine_epi64_epi8::<0>(fields, _mm512_set1_epi64(EIGHTH_SIGN)),
            steps: _mm512_or_si512(_mm512_srli_epi32::<27>(rest), _mm512_set1_epi32(1)),
        }
    }

    /// Planes `2 * pair` and `2 * pair + 1` of the weights before their steps, offset to unsigned.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn weights(&self, pair: usize) -> [__m512i; 2] {
        // Four bits of magnitudes, and above them two of signs; lookups ignore what is above those.
        let (magnitudes, signs) = match pair {
            0 => (self.low, _mm512_slli_epi16::<4>(self.signs)),
            1 => (
                _mm512_srli_epi16::<4>(self.low),
                _mm512_slli_epi16::<2>(self.signs),
            ),
            2 => (self.high, self.signs),
            _ => (
                _mm512_srli_epi16::<4>(self.high),
                _mm512_srli_epi16::<2>(self.signs),
            ),
        };
        // The first where it has ones, of the other two.
        let index = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), magnitudes, signs);
        [0, 1].map(|i| _mm512_permutexvar_epi8(index, WEIGHTS.register(i)))
    }
}

/// A block without its scale.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn groups(block: &[u8; 66]) -> __m512i {
    // SAFETY: 64 bytes behind the first two; the load needs no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().add(2).cast()) }
}

/// Byte `8 i + j` of a register to byte `8 j + i`.
static TURN: Table<u8, 64> = Table(turn());
/// Qwords of two registers in turn: of their lower halves, of their upper ones; then the same of pairs of qwords.
static BESIDE: Table<u64, 32> = Table(beside());
/// Dwords 0, 2, 4 ... of two registers, then those between them.
static EVEN: Table<u32, 32> = Table(even());
static LOW: Table<u8, 256> = Table(bytes_of_patterns(0));
static HIGH: Table<u8, 256> = Table(bytes_of_patterns(1));
static WEIGHTS: Table<u8, 128> = Table(weights());

#[allow(clippy::cast_possible_truncation)] // below 64
const fn turn() -> [u8; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (i % 8 * 8 + i / 8) as u8;
        i += 1;
    }
    table
}

const fn beside() -> [u64; 32] {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        let (register, at) = (i / 8, i as u64 % 8);
        let half = 4 * (register as u64 % 2);
        table[i] = if register < 2 {
            half + at / 2 + 8 * (at % 2)
        } else {
            half + at / 4 * 2 + at % 2 + 8 * (at / 2 % 2)
        };
        i += 1;
    }
    table
}

#[allow(clippy::cast_possible_truncation)] // below 32
const fn even() -> [u32; 32] {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        table[i] = (i % 16 * 2 + i / 16) as u32;
        i += 1;
    }
    table
}

const fn bytes_of_patterns(byte: usize) -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = PATTERNS[i].to_le_bytes()[byte];
        i += 1;
    }
    table
}

/// By two magnitudes and two signs the first weight, then by the same the second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 128 - 43 to 128 + 43
const fn weights() -> [u8; 128] {
    let mut table = [0; 128];
    let mut i = 0;
    while i < 128 {
        let (index, which) = (i % 64, i / 64);
        let magnitude = index >> (2 * which) & 3;
        // No pattern has a fourth.
        let magnitude = if magnitude < 3 {
            MAGNITUDES[magnitude] as i32
        } else {
            0
        };
        let minus = index >> (4 + which) & 1 == 1;
        table[i] = (OFFSET + if minus { -magnitude } else { magnitude }) as u8;
        i += 1;
    }
    table
}
