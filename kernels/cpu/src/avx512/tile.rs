//! A panel of rows times a few tokens, all integers in registers.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_NEQ_UQ, _mm512_add_epi32, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_load_si512,
    _mm512_loadu_ps, _mm512_mask3_fnmadd_ps, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use ds4_kernels::Format;

use super::ahead::{self, Ahead};
use crate::operands::{ROWS, Token};
use crate::panel::{LANES, Line, Panel};

/// Tokens of a tile: eight chains of additions hide the latency of a product (4 cycles on Zen 4) and leave registers for the rest.
pub(super) const TOKENS: usize = 8;

/// What the integer of a block is made of.
trait Shape {
    /// Groups of 32 values per block.
    const GROUPS: usize;
    /// Weights are offset to unsigned.
    const OFFSET: bool;
    /// Each group's integer is multiplied with a step.
    const STEPS: bool;
    /// Each group of 16 has a minimum.
    const MINIMUMS: bool;
}

/// `Q8_0` and `MXFP4`.
struct Bytes;
/// `Q2_K`: codes times steps are bytes, multiplied when the panel was made.
struct Two;
/// `Q4_K`.
struct Four;
/// `IQ2_XXS`.
struct Grid;

impl Shape for Bytes {
    const GROUPS: usize = 1;
    const OFFSET: bool = true;
    const STEPS: bool = false;
    const MINIMUMS: bool = false;
}

impl Shape for Two {
    const GROUPS: usize = 8;
    const OFFSET: bool = false;
    const STEPS: bool = false;
    const MINIMUMS: bool = true;
}

impl Shape for Four {
    const GROUPS: usize = 8;
    const OFFSET: bool = false;
    const STEPS: bool = true;
    const MINIMUMS: bool = true;
}

impl Shape for Grid {
    const GROUPS: usize = 8;
    const OFFSET: bool = true;
    const STEPS: bool = true;
    const MINIMUMS: bool = false;
}

/// Adds the products of up to [`TOKENS`] tokens with the panel's blocks to `sums`, one for each token.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn add(panel: &Panel, tokens: &[Token<'_>], ahead: &mut Ahead, sums: &mut [[f32; ROWS]]) {
    match panel.format {
        Format::Q2K => of_shape::<Two>(panel, tokens, ahead, sums),
        Format::Q4K => of_shape::<Four>(panel, tokens, ahead, sums),
        Format::Iq2Xxs => of_shape::<Grid>(panel, tokens, ahead, sums),
        _ => of_shape::<Bytes>(panel, tokens, ahead, sums),
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_shape<S: Shape>(panel: &Panel, tokens: &[Token<'_>], ahead: &mut Ahead, sums: &mut [[f32; ROWS]]) {
    match tokens.len() {
        8 => tile::<S, 8>(panel, tokens, ahead, sums),
        7 => tile::<S, 7>(panel, tokens, ahead, sums),
        6 => tile::<S, 6>(panel, tokens, ahead, sums),
        5 => tile::<S, 5>(panel, tokens, ahead, sums),
        4 => tile::<S, 4>(panel, tokens, ahead, sums),
        3 => tile::<S, 3>(panel, tokens, ahead, sums),
        2 => tile::<S, 2>(panel, tokens, ahead, sums),
        1 => tile::<S, 1>(panel, tokens, ahead, sums),
        count => unreachable!("{count} tokens in a tile of {TOKENS}"),
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn tile<S: Shape, const T: usize>(
    panel: &Panel,
    tokens: &[Token<'_>],
    ahead: &mut Ahead,
    out: &mut [[f32; ROWS]],
) {
    let (first, blocks) = (panel.blocks.start, panel.blocks.len());
    let groups = blocks * S::GROUPS;
    let tokens: &[Token<'_>; T] = tokens.as_array().expect("as many tokens as the tile is for");
    let out: &mut [[f32; ROWS]; T] = out.as_mut_array().expect("sums for each token");
    for token in tokens {
        let (blocks, groups) = (first + blocks, first * S::GROUPS + groups);
        assert!(token.codes.len() >= 32 * groups && token.offsets.len() >= groups);
        assert!(token.sums.len() >= 2 * groups && token.scales.len() >= blocks);
    }
    assert!(panel.codes.len() >= 8 * groups && panel.d.len() == blocks);
    assert!(!S::STEPS || panel.steps.len() == groups);
    assert!(!S::MINIMUMS || (panel.minimums.len() == groups && panel.dmin.len() == blocks));
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for t in 0..T {
        sums[t] = load(&out[t]);
    }
    for block in 0..blocks {
        let mut dots = [[_mm512_setzero_si512(); 2]; T];
        for group in block * S::GROUPS..(block + 1) * S::GROUPS {
            ahead.ask(ahead::OF_TILE);
            // SAFETY: `group` is below `groups`, for which all lengths were asserted above.
            unsafe { add_group::<S, T>(panel, tokens, group, &mut dots) };
        }
        // SAFETY: `block` is below `blocks`, for which all lengths were asserted above.
        unsafe { add_block::<S, T>(panel, tokens, block, &dots, &mut sums) };
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sums) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            // SAFETY: an array of 16 values is 64 bytes.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
        }
    }
}

/// The integers of 32 values.
///
/// # Safety
/// The panel and the tokens have group `group`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn add_group<S: Shape, const T: usize>(
    panel: &Panel,
    tokens: &[Token<'_>; T],
    group: usize,
    dots: &mut [[__m512i; 2]; T],
) {
    let of_token = panel.blocks.start * S::GROUPS + group;
    // SAFETY: as the caller promised; 32 codes are 8 lines of 4.
    unsafe {
        let mut parts = if S::OFFSET || S::STEPS {
            [[_mm512_setzero_si512(); 2]; T]
        } else {
            *dots
        };
        if S::OFFSET {
            for t in 0..T {
                parts[t] = [_mm512_set1_epi32(*tokens[t].offsets.get_unchecked(of_token)); 2];
            }
        }
        for four in 0..8 {
            let weights = load_line(panel.codes.get_unchecked(8 * group + four));
            for t in 0..T {
                let x = fours(tokens[t].codes.as_ptr().add(4 * (8 * of_token + four)));
                for h in 0..2 {
                    parts[t][h] = _mm512_dpbusd_epi32(parts[t][h], weights[h], x);
                }
            }
        }
        if S::STEPS {
            let steps = load_line(panel.steps.get_unchecked(group));
            for t in 0..T {
                for h in 0..2 {
                    dots[t][h] = _mm512_add_epi32(dots[t][h], _mm512_mullo_epi32(parts[t][h], steps[h]));
                }
            }
        } else {
            *dots = if S::GROUPS == 1 || !S::OFFSET {
                parts
            } else {
                unreachable!("no such format")
            };
        }
    }
}

/// As `ds4_kernels::block::Block::accumulate`: one fused multiply-add for the weights and one for the minimums.
///
/// # Safety
/// The panel and the tokens have block `block`.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn add_block<S: Shape, const T: usize>(
    panel: &Panel,
    tokens: &[Token<'_>; T],
    block: usize,
    dots: &[[__m512i; 2]; T],
    sums: &mut [[__m512; 2]; T],
) {
    let at = panel.blocks.start + block;
    // SAFETY: as the caller promised; a block has a scale per token and, with minimums, 16 sums.
    unsafe {
        let d = load_floats(panel.d.get_unchecked(block));
        for t in 0..T {
            let of_token = _mm512_set1_ps(*tokens[t].scales.get_unchecked(at));
            for h in 0..2 {
                let scale = _mm512_mul_ps(d[h], of_token);
                sums[t][h] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots[t][h]), sums[t][h]);
            }
        }
        if !S::MINIMUMS {
            return;
        }
        let mut minimums = [[_mm512_setzero_si512(); 2]; T];
        for two in 0..8 {
            let weights = load_line(panel.minimums.get_unchecked(8 * block + two));
            for t in 0..T {
                let x = fours(tokens[t].sums.as_ptr().add(2 * (8 * at + two)).cast());
                for h in 0..2 {
                    minimums[t][h] = _mm512_dpwssd_epi32(minimums[t][h], weights[h], x);
                }
            }
        }
        let dmin = load_floats(panel.dmin.get_unchecked(block));
        for h in 0..2 {
            let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(dmin[h], _mm512_setzero_ps());
            for t in 0..T {
                let of_token = _mm512_set1_ps(*tokens[t].scales.get_unchecked(at));
                let (scale, integers) = (
                    _mm512_mul_ps(dmin[h], of_token),
                    _mm512_cvtepi32_ps(minimums[t][h]),
                );
                sums[t][h] = _mm512_mask3_fnmadd_ps(scale, integers, sums[t][h], some);
            }
        }
    }
}

/// The four bytes at `start` in every lane.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
unsafe fn fours(start: *const i8) -> __m512i {
    // SAFETY: as the caller promised.
    _mm512_set1_epi32(unsafe { start.cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load_line<T>(line: &Line<T>) -> [__m512i; 2] {
    const { assert!(size_of::<Line<T>>() == 128) };
    let start = std::ptr::from_ref(line).cast::<__m512i>();
    // SAFETY: a line is two registers, aligned to 64 bytes.
    unsafe { [_mm512_load_si512(start), _mm512_load_si512(start.add(1))] }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load_floats(line: &Line<f32>) -> [__m512; 2] {
    load_line(line).map(|register| _mm512_castsi512_ps(register))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load(values: &[f32; ROWS]) -> [__m512; 2] {
    // SAFETY: the array is two registers; the loads need no alignment.
    unsafe {
        [
            _mm512_loadu_ps(values.as_ptr()),
            _mm512_loadu_ps(values.as_ptr().add(LANES)),
        ]
    }
}
