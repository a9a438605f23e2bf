//! A panel of rows times a few tokens, all sums in registers.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_NEQ_UQ, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_cmp_ps_mask,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_load_ps,
    _mm512_load_si512, _mm512_mask3_fnmadd_ps, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use ds4_kernels::Format;

use crate::operands::{ROWS, Rows, Token};
use crate::panel::{Line, Panel};

/// Tokens of a tile: eight chains of additions hide the latency of a product (4 cycles on Zen 4) and leave registers for the rest.
pub(super) const TOKENS: usize = 8;

/// Products of a tile's tokens.
type Products = [[f32; ROWS]; TOKENS];

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

/// Bytes that memory is asked for while a tile computes: those of the next rows.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Where they start; need not be mapped.
    start: *const u8,
    /// Bytes for each group of 32 values.
    per_group: usize,
}

impl Ahead {
    /// What follows `rows` in memory, as much again.
    pub(super) fn of(rows: &Rows<'_>) -> Self {
        let bytes = ROWS * rows.row(0).len();
        Self {
            start: rows.row(0).as_ptr().wrapping_add(bytes),
            per_group: bytes / (rows.cols() / 32),
        }
    }

    /// Nothing: another tile of the same rows has asked.
    pub(super) const fn nothing() -> Self {
        Self {
            start: std::ptr::null(),
            per_group: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn ask(self, group: usize) {
        const LINE: usize = 64;
        let start = self.start.wrapping_add(group * self.per_group);
        for at in (0..self.per_group).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast());
        }
    }
}

/// The products of up to [`TOKENS`] tokens with the panel's rows.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(super) fn product(panel: &Panel, tokens: &[Token<'_>], ahead: Ahead) -> Products {
    match panel.format {
        Format::Q2K => of_shape::<Two>(panel, tokens, ahead),
        Format::Q4K => of_shape::<Four>(panel, tokens, ahead),
        Format::Iq2Xxs => of_shape::<Grid>(panel, tokens, ahead),
        _ => of_shape::<Bytes>(panel, tokens, ahead),
    }
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_shape<S: Shape>(panel: &Panel, tokens: &[Token<'_>], ahead: Ahead) -> Products {
    let mut out = [[0.0; ROWS]; TOKENS];
    match tokens.len() {
        8 => tile::<S, 8>(panel, tokens, ahead, &mut out),
        7 => tile::<S, 7>(panel, tokens, ahead, &mut out),
        6 => tile::<S, 6>(panel, tokens, ahead, &mut out),
        5 => tile::<S, 5>(panel, tokens, ahead, &mut out),
        4 => tile::<S, 4>(panel, tokens, ahead, &mut out),
        3 => tile::<S, 3>(panel, tokens, ahead, &mut out),
        2 => tile::<S, 2>(panel, tokens, ahead, &mut out),
        1 => tile::<S, 1>(panel, tokens, ahead, &mut out),
        count => unreachable!("{count} tokens in a tile of {TOKENS}"),
    }
    out
}

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn tile<S: Shape, const T: usize>(panel: &Panel, tokens: &[Token<'_>], ahead: Ahead, out: &mut Products) {
    let groups = panel.blocks * S::GROUPS;
    let tokens: &[Token<'_>; T] = tokens.as_array().expect("as many tokens as the tile is for");
    for token in tokens {
        assert!(token.codes.len() == 32 * groups && token.offsets.len() == groups);
        assert!(token.sums.len() == 2 * groups && token.scales.len() == panel.blocks);
    }
    assert!(panel.codes.len() >= 8 * groups && panel.d.len() == panel.blocks);
    assert!(!S::STEPS || panel.steps.len() == groups);
    assert!(!S::MINIMUMS || (panel.minimums.len() == groups && panel.dmin.len() == panel.blocks));
    let mut sums = [_mm512_setzero_ps(); T];
    for block in 0..panel.blocks {
        let mut dots = [_mm512_setzero_si512(); T];
        for group in block * S::GROUPS..(block + 1) * S::GROUPS {
            ahead.ask(group);
            // SAFETY: `group` is below `groups`, for which all lengths were asserted above.
            unsafe { add_group::<S, T>(panel, tokens, group, &mut dots) };
        }
        // SAFETY: `block` is below `panel.blocks`, for which all lengths were asserted above.
        unsafe { add_block::<S, T>(panel, tokens, block, &dots, &mut sums) };
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        // SAFETY: an array of 16 values is 64 bytes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
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
    dots: &mut [__m512i; T],
) {
    // SAFETY: as the caller promised; 32 codes are 8 lines of 4.
    unsafe {
        let mut parts = if S::OFFSET || S::STEPS {
            [_mm512_setzero_si512(); T]
        } else {
            *dots
        };
        if S::OFFSET {
            for t in 0..T {
                parts[t] = _mm512_set1_epi32(*tokens[t].offsets.get_unchecked(group));
            }
        }
        for four in 8 * group..8 * group + 8 {
            let weights = load_line(panel.codes.get_unchecked(four));
            for t in 0..T {
                let x = tokens[t]
                    .codes
                    .as_ptr()
                    .add(4 * four)
                    .cast::<i32>()
                    .read_unaligned();
                parts[t] = _mm512_dpbusd_epi32(parts[t], weights, _mm512_set1_epi32(x));
            }
        }
        if S::STEPS {
            let steps = load_line(panel.steps.get_unchecked(group));
            for t in 0..T {
                dots[t] = _mm512_add_epi32(dots[t], _mm512_mullo_epi32(parts[t], steps));
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
    dots: &[__m512i; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as the caller promised; a block has a scale per token and, with minimums, 16 sums.
    unsafe {
        let d = load_floats(panel.d.get_unchecked(block));
        for t in 0..T {
            let scale = _mm512_mul_ps(d, _mm512_set1_ps(*tokens[t].scales.get_unchecked(block)));
            sums[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots[t]), sums[t]);
        }
        if !S::MINIMUMS {
            return;
        }
        let mut minimums = [_mm512_setzero_si512(); T];
        for pair in 8 * block..8 * block + 8 {
            let weights = load_line(panel.minimums.get_unchecked(pair));
            for t in 0..T {
                let x = tokens[t]
                    .sums
                    .as_ptr()
                    .add(2 * pair)
                    .cast::<i32>()
                    .read_unaligned();
                minimums[t] = _mm512_dpwssd_epi32(minimums[t], weights, _mm512_set1_epi32(x));
            }
        }
        let dmin = load_floats(panel.dmin.get_unchecked(block));
        let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(dmin, _mm512_setzero_ps());
        for t in 0..T {
            let scale = _mm512_mul_ps(dmin, _mm512_set1_ps(*tokens[t].scales.get_unchecked(block)));
            sums[t] = _mm512_mask3_fnmadd_ps(scale, _mm512_cvtepi32_ps(minimums[t]), sums[t], some);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load_line<T>(line: &Line<T>) -> __m512i {
    const { assert!(size_of::<Line<T>>() == 64) };
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn load_floats(line: &Line<f32>) -> __m512 {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_ps(line.0.as_ptr()) }
}
