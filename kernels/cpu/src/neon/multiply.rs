//! The two instructions that multiply bytes, and what each of them wants beside what.
//!
//! Both add to four sums: `sdot` to those of four rows and one token, four values deep; `smmla` to those of two rows and two tokens, eight
//! deep. (Neither is a stable intrinsic of the toolchain yet, hence assembly.)

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vld1q_s8, vreinterpretq_s8_s64, vreinterpretq_s32_s8, vreinterpretq_s64_s8,
    vreinterpretq_s64_s32, vzip1q_s32, vzip1q_s64, vzip2q_s32, vzip2q_s64,
};
use std::arch::asm;
use std::array::from_fn;

/// Rows of a tile.
pub(super) const ROWS: usize = 8;
/// Tokens of a tile: with eight rows eight registers of sums, so that integers, floats and operands fit 32 of them.
pub(super) const TOKENS: usize = 4;
/// Values of a step.
pub(super) const STEP: usize = 16;

/// One step of [`ROWS`] rows, or what else is as many bytes, in the order of an instruction.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [i8; ROWS * STEP]);

/// An instruction. The sums of a tile are `[H][N]` registers: `H` times for its rows, `N` times for its tokens.
///
/// # Safety
/// [`Multiply::add`] must be inlined into a function that enables the instruction.
pub(super) trait Multiply<const H: usize> {
    /// Tokens of a register of sums; its lanes are rows by tokens, see [`row`] and [`token`].
    const TOKENS: usize;

    /// Where the first or the second eight values (`half` 0 or 1) of a token's step go, among those of `tokens` tokens; in eights.
    fn place(token: usize, half: usize, tokens: usize) -> usize;

    /// 16 values of each row, in the order of a line.
    fn arrange(rows: [int8x16_t; ROWS]) -> [int8x16_t; ROWS];

    /// Adds the products of a line with one step of tokens.
    ///
    /// # Safety
    /// As the trait says; at `codes` are `N * TOKENS` tokens' codes of the step.
    unsafe fn add<const N: usize>(line: &Line, codes: *const [i8; 8], sums: &mut [[int32x4_t; N]; H]);
}

/// The row of lane `lane` of register `h` of sums.
pub(super) const fn row<M: Multiply<H>, const H: usize>(h: usize, lane: usize) -> usize {
    h * (ROWS / H) + lane / M::TOKENS
}

/// The token of lane `lane` of register `n` of sums.
pub(super) const fn token<M: Multiply<H>, const H: usize>(n: usize, lane: usize) -> usize {
    n * M::TOKENS + lane % M::TOKENS
}

/// `sdot`, by one four of a token's values: lines are four times four values of each row.
pub(super) struct Dotprod;

impl Multiply<2> for Dotprod {
    const TOKENS: usize = 1;

    #[inline(always)]
    fn place(token: usize, half: usize, _tokens: usize) -> usize {
        2 * token + half
    }

    #[inline(always)]
    fn arrange(rows: [int8x16_t; ROWS]) -> [int8x16_t; ROWS] {
        let [a, b, c, d, e, f, g, h] = rows;
        let (low, high) = (transpose([a, b, c, d]), transpose([e, f, g, h]));
        from_fn(|i| if i % 2 == 0 { low[i / 2] } else { high[i / 2] })
    }

    #[inline(always)]
    unsafe fn add<const N: usize>(line: &Line, codes: *const [i8; 8], sums: &mut [[int32x4_t; N]; 2]) {
        // SAFETY: as the caller promised.
        unsafe {
            let x: [int8x16_t; N] = from_fn(|n| vld1q_s8(codes.add(2 * n).cast()));
            sdot_fours::<0, N>(line, &x, sums);
            sdot_fours::<1, N>(line, &x, sums);
            sdot_fours::<2, N>(line, &x, sums);
            sdot_fours::<3, N>(line, &x, sums);
        }
    }
}

/// Values `4 * FOUR` on of all rows and tokens.
///
/// # Safety
/// As [`Multiply::add`].
#[inline(always)]
unsafe fn sdot_fours<const FOUR: i32, const N: usize>(
    line: &Line,
    x: &[int8x16_t; N],
    sums: &mut [[int32x4_t; N]; 2],
) {
    // SAFETY: as the caller promised; a line has eight registers, two of them for each four values.
    unsafe {
        let weights = line.0.as_ptr().add(2 * 16 * FOUR as usize);
        let weights = [vld1q_s8(weights), vld1q_s8(weights.add(16))];
        for n in 0..N {
            for h in 0..2 {
                sums[h][n] = sdot_four::<FOUR>(sums[h][n], weights[h], x[n]);
            }
        }
    }
}

/// `smmla`: lines are twice eight values of each row.
pub(super) struct I8mm;

impl Multiply<4> for I8mm {
    const TOKENS: usize = 2;

    #[inline(always)]
    fn place(token: usize, half: usize, tokens: usize) -> usize {
        half * tokens + token
    }

    #[inline(always)]
    fn arrange(rows: [int8x16_t; ROWS]) -> [int8x16_t; ROWS] {
        let pairs = rows.as_chunks::<2>().0;
        from_fn(|i| eights(pairs[i % 4])[i / 4])
    }

    #[inline(always)]
    unsafe fn add<const N: usize>(line: &Line, codes: *const [i8; 8], sums: &mut [[int32x4_t; N]; 4]) {
        // SAFETY: as the caller promised; a line has eight registers, four of them for each eight values.
        unsafe {
            for half in 0..2 {
                let x: [int8x16_t; N] = from_fn(|n| vld1q_s8(codes.add(2 * (N * half + n)).cast()));
                for (h, sums) in sums.iter_mut().enumerate() {
                    let weights = vld1q_s8(line.0.as_ptr().add(16 * (4 * half + h)));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = smmla(*sum, weights, x);
                    }
                }
            }
        }
    }
}

/// Four bytes `j` of register `i` become four bytes `i` of register `j`.
#[inline(always)]
fn transpose(rows: [int8x16_t; 4]) -> [int8x16_t; 4] {
    // SAFETY: NEON is there on every target of this module.
    unsafe {
        let [a, b, c, d] = rows.map(|row| vreinterpretq_s32_s8(row));
        let pairs = [
            (vzip1q_s32(a, b), vzip1q_s32(c, d)),
            (vzip2q_s32(a, b), vzip2q_s32(c, d)),
        ];
        let [(a, b), (c, d)] = pairs.map(|(ab, cd)| (vreinterpretq_s64_s32(ab), vreinterpretq_s64_s32(cd)));
        [
            vzip1q_s64(a, b),
            vzip2q_s64(a, b),
            vzip1q_s64(c, d),
            vzip2q_s64(c, d),
        ]
        .map(|four| vreinterpretq_s8_s64(four))
    }
}

/// The first eight bytes of both, and the last eight.
#[inline(always)]
pub(super) fn eights([a, b]: [int8x16_t; 2]) -> [int8x16_t; 2] {
    // SAFETY: NEON is there on every target of this module.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        [vzip1q_s64(a, b), vzip2q_s64(a, b)].map(|eights| vreinterpretq_s8_s64(eights))
    }
}

/// Adds to each lane the products of its four bytes.
///
/// # Safety
/// Inlined into a function that enables the dot-product extension.
#[inline(always)]
pub(super) unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers alone, of an extension that the caller enables.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds to each lane the products of its four bytes of `a` with bytes `4 * FOUR` on of `b`.
///
/// # Safety
/// As [`sdot`].
#[inline(always)]
pub(super) unsafe fn sdot_four<const FOUR: i32>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{four}]",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, four = const FOUR,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds the products of two rows of eight bytes with two columns: row by row.
///
/// # Safety
/// Inlined into a function that enables i8mm.
#[inline(always)]
pub(super) unsafe fn smmla(mut sum: int32x4_t, rows: int8x16_t, columns: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers alone, of an extension that the caller enables.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {rows:v}.16b, {columns:v}.16b",
            sum = inout(vreg) sum, rows = in(vreg) rows, columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
