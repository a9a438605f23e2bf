//! What a level supplies: products of a few rows, and activations as bytes.

use ds4_kernels::block::Block;
use ds4_kernels::{CodesMut, Format, dequantize_row, dot_f32};

use crate::Level;
use crate::beside::Beside;
use crate::operands::{Put, ROWS, Rows, Token};
use crate::tiled::Tiling;

/// The functions of one level. All of them give the bits of the scalar ones.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Quantised rows times quantised tokens.
    pub(crate) product: fn(&Rows<'_>, &[Token<'_>], Put<'_>),
    /// Rows of `Q8_0` times tokens beside each other, where a level has that way.
    pub(crate) beside: Option<fn(&Rows<'_>, &Beside, Put<'_>)>,
    /// Rows times many tokens in tiles, where a level has that way.
    pub(crate) tiled: Option<Tiling>,
    /// Rows of any format times `f32` tokens.
    pub(crate) plain: fn(&Rows<'_>, &[&[f32]], Put<'_>),
    pub(crate) dot: fn(&[f32], &[f32]) -> f32,
    pub(crate) axpy: fn(f32, &[f32], &mut [f32]),
    /// Whole blocks of so many values.
    pub(crate) quantize: fn(&[f32], usize, CodesMut<'_>),
}

/// Without vector instructions of our own.
const SCALAR: Kernels = Kernels {
    product: |rows, tokens, put| by_blocks(rows, tokens, Block::dot, put),
    beside: None,
    tiled: None,
    plain: |rows, tokens, put| {
        let widen = |bytes: &[u8], out: &mut [f32]| dequantize_row(Format::F16, bytes, out);
        crate::plain::product(rows, tokens, widen, dot_f32, put);
    },
    dot: dot_f32,
    axpy: |factor, x, y| ds4_kernels::Backend::axpy(&ds4_kernels::Scalar, factor, x, y),
    quantize: ds4_kernels::quantize,
};

impl Kernels {
    /// The functions of `level`, or the scalar ones where the machine lacks it.
    pub(crate) fn of(level: Level) -> Self {
        if !level.available() {
            return SCALAR;
        }
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => crate::amx::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => crate::avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => crate::neon::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Level::I8mm => crate::neon::I8MM_KERNELS,
            _ => SCALAR,
        }
    }
}

/// Row by row; each block is unpacked once for all tokens, and `dot` gives its integers.
pub(crate) fn by_blocks(
    rows: &Rows<'_>,
    tokens: &[Token<'_>],
    dot: impl Fn(&Block, &[i8]) -> (i32, i32),
    put: Put<'_>,
) {
    let (format, mut out) = (rows.format(), vec![[0.0; ROWS]; tokens.len()]);
    for row in 0..rows.count() {
        for (at, bytes) in rows.row(row).chunks_exact(format.block_bytes()).enumerate() {
            let block = Block::unpack(format, bytes);
            for (out, token) in out.iter_mut().zip(tokens) {
                let codes = &token.codes[at * format.block_len()..][..format.block_len()];
                let (dot, minimums) = dot(&block, codes);
                out[row] = block.accumulate(out[row], token.scales[at], dot, minimums);
            }
        }
    }
    out.iter().enumerate().for_each(|(i, values)| put(i, values));
}
