//! Half of the rows, 16, times four tokens: weights widened to 16 bits, sub-block scales taken, so that one pair of instructions serves every format and
//! no sum can saturate.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_NEQ_UQ, _mm_loadu_si128, _mm256_add_epi32, _mm256_blendv_ps, _mm256_cmp_ps,
    _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_load_ps,
    _mm256_load_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_ps, _mm256_storeu_si256,
};
use std::cell::RefCell;

use ds4_kernels::Format;
use ds4_kernels::block::{Block, GROUP};

use crate::operands::{Put, ROWS, Rows, Token};
use crate::panel::{LANES, Line};

/// Tokens of a tile: eight sums of eight lanes.
const TOKENS: usize = 4;

/// Rows as lanes, two consecutive values of a row in a lane.
#[derive(Default)]
struct Wide {
    blocks: usize,
    /// Pairs of values per block.
    pairs: usize,
    has_minimums: bool,
    /// `[blocks * pairs]`
    weights: Vec<Line<[i16; 2]>>,
    /// `[blocks * 8]`
    minimums: Vec<Line<[i16; 2]>>,
    d: Vec<Line<f32>>,
    dmin: Vec<Line<f32>>,
    /// The tokens' codes, `[TOKENS][cols]`.
    x: Vec<i16>,
}

thread_local! {
    static WIDE: RefCell<Wide> = RefCell::default();
}

/// The products of the rows with any number of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    WIDE.with_borrow_mut(|wide| {
        wide.unpack(rows);
        for (i, tokens) in tokens.chunks(TOKENS).enumerate() {
            wide.widen(tokens);
            let mut out = [[0.0; ROWS]; TOKENS];
            for half in 0..2 {
                match *tokens {
                    [a, b, c, d] => tile(wide, half, &[a, b, c, d], &mut out),
                    [a, b, c] => tile(wide, half, &[a, b, c], &mut out),
                    [a, b] => tile(wide, half, &[a, b], &mut out),
                    [a] => tile(wide, half, &[a], &mut out),
                    _ => unreachable!("chunks of one to four"),
                }
            }
            for (j, values) in out[..tokens.len()].iter().enumerate() {
                put(i * TOKENS + j, values);
            }
        }
    });
}

impl Wide {
    fn unpack(&mut self, rows: &Rows<'_>) {
        let format = rows.format();
        (self.blocks, self.pairs) = (rows.blocks(), format.block_len() / 2);
        self.has_minimums = matches!(format, Format::Q2K | Format::Q4K);
        self.weights
            .resize(self.blocks * self.pairs, Line([[0; 2]; ROWS]));
        self.minimums
            .resize(self.blocks * GROUP / 2, Line([[0; 2]; ROWS]));
        self.d.resize(self.blocks, Line([0.0; ROWS]));
        self.dmin.resize(self.blocks, Line([0.0; ROWS]));
        for row in 0..ROWS {
            for (at, bytes) in rows.row(row).chunks_exact(format.block_bytes()).enumerate() {
                self.put(row, at, &Block::unpack(format, bytes));
            }
        }
    }

    fn put(&mut self, row: usize, at: usize, block: &Block) {
        (self.d[at].0[row], self.dmin[at].0[row]) = (block.d, block.dmin);
        let weights = self.weights[at * self.pairs..(at + 1) * self.pairs].iter_mut();
        weights
            .zip(block.weights.as_chunks().0)
            .for_each(|(line, pair)| line.0[row] = *pair);
        if self.has_minimums {
            let minimums = self.minimums[at * GROUP / 2..(at + 1) * GROUP / 2].iter_mut();
            minimums
                .zip(block.minimums.as_chunks().0)
                .for_each(|(line, pair)| line.0[row] = *pair);
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen(&mut self, tokens: &[Token<'_>]) {
        let cols = tokens[0].codes.len();
        self.x.resize(TOKENS * cols, 0);
        for (out, token) in self.x.chunks_exact_mut(cols).zip(tokens) {
            let sixteens = out
                .as_chunks_mut::<16>()
                .0
                .iter_mut()
                .zip(token.codes.as_chunks::<16>().0);
            for (out, codes) in sixteens {
                // SAFETY: 16 bytes are read and 32 written, the sizes of the arrays.
                unsafe {
                    let codes = _mm_loadu_si128(codes.as_ptr().cast());
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepi8_epi16(codes));
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const T: usize>(wide: &Wide, half: usize, tokens: &[Token<'_>; T], out: &mut [[f32; ROWS]; TOKENS]) {
    let cols = 2 * wide.pairs * wide.blocks;
    tokens.iter().for_each(|token| token.check(cols, 2 * wide.pairs));
    let x: [&[i16]; T] = std::array::from_fn(|t| &wide.x[t * cols..(t + 1) * cols]);
    let sums: [&[i16]; T] = std::array::from_fn(|t| tokens[t].sums);
    let mut totals = [[_mm256_setzero_ps(); 2]; T];
    for block in 0..wide.blocks {
        let scales: [f32; T] = std::array::from_fn(|t| tokens[t].scales[block]);
        let dots = dot(
            &wide.weights[block * wide.pairs..(block + 1) * wide.pairs],
            half,
            x,
            block * wide.pairs,
        );
        let d = registers(&wide.d[block], half);
        for t in 0..T {
            for h in 0..2 {
                let scale = _mm256_mul_ps(d[h], _mm256_set1_ps(scales[t]));
                totals[t][h] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots[t][h]), totals[t][h]);
            }
        }
        if wide.has_minimums {
            let minimums = dot(
                &wide.minimums[block * GROUP / 2..(block + 1) * GROUP / 2],
                half,
                sums,
                block * GROUP / 2,
            );
            subtract(registers(&wide.dmin[block], half), &minimums, scales, &mut totals);
        }
    }
    for (out, totals) in out.iter_mut().zip(totals) {
        let out = &mut out[half * LANES..][..LANES];
        for (out, total) in out.as_chunks_mut::<8>().0.iter_mut().zip(totals) {
            // SAFETY: the array has room for eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
        }
    }
}

/// The part of the minimums, where there are some: `Block::accumulate` leaves the sum alone where their scale is zero.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn subtract<const T: usize>(
    dmin: [__m256; 2],
    minimums: &[[__m256i; 2]; T],
    scales: [f32; T],
    totals: &mut [[__m256; 2]; T],
) {
    for h in 0..2 {
        let some = _mm256_cmp_ps::<_CMP_NEQ_UQ>(dmin[h], _mm256_setzero_ps());
        for t in 0..T {
            let scale = _mm256_mul_ps(dmin[h], _mm256_set1_ps(scales[t]));
            let less = _mm256_fnmadd_ps(scale, _mm256_cvtepi32_ps(minimums[t][h]), totals[t][h]);
            totals[t][h] = _mm256_blendv_ps(totals[t][h], less, some);
        }
    }
}

/// Lines times the pairs of `x` from `first` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const T: usize>(
    lines: &[Line<[i16; 2]>],
    half: usize,
    x: [&[i16]; T],
    first: usize,
) -> [[__m256i; 2]; T] {
    x.iter()
        .for_each(|x| assert!(2 * (first + lines.len()) <= x.len()));
    let mut dots = [[_mm256_setzero_si256(); 2]; T];
    for (i, line) in lines.iter().enumerate() {
        // SAFETY: half a line is 64 bytes, aligned to 64.
        let weights = unsafe {
            let start = line.0[half * LANES..][..LANES].as_ptr().cast::<__m256i>();
            [_mm256_load_si256(start), _mm256_load_si256(start.add(1))]
        };
        for t in 0..T {
            // SAFETY: the pair is inside, as asserted above.
            let pair = unsafe { x[t].as_ptr().add(2 * (first + i)).cast::<i32>().read_unaligned() };
            for h in 0..2 {
                dots[t][h] =
                    _mm256_add_epi32(dots[t][h], _mm256_madd_epi16(weights[h], _mm256_set1_epi32(pair)));
            }
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn registers(line: &Line<f32>, half: usize) -> [__m256; 2] {
    let values = &line.0[half * LANES..][..LANES];
    // SAFETY: half a line is 16 values, aligned to 64 bytes.
    unsafe {
        [
            _mm256_load_ps(values.as_ptr()),
            _mm256_load_ps(values.as_ptr().add(8)),
        ]
    }
}
