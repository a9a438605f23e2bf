//! Many quantised tokens, 16 beside each other: lanes are tokens, and what a tile takes of a block lies together.

// Only AMX has kernels that read them.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use ds4_kernels::{Format, Q8K_BLOCK};

use crate::operands::{Put, Rows, Token};

/// Tokens of a tile.
pub(crate) const TOKENS: usize = 16;
/// Fewer tokens are multiplied otherwise: most of a tile would be empty.
const LEAST: usize = 12;

/// What a level with tiles supplies.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    /// The tokens, quantised in blocks of 256, in the order of tiles.
    pub(crate) prepare: fn(&[Token<'_>]) -> Tiled,
    /// Rows of a format that [`Tiling::takes`] times all tokens.
    pub(crate) product: fn(&Rows<'_>, &Tiled, Put<'_>),
}

impl Tiling {
    /// Whether tiles are the way to multiply rows of `format` with so many tokens. In blocks of 32 values integers become floats too often to gain.
    pub(crate) fn takes(format: Format, tokens: usize) -> bool {
        tokens >= LEAST && matches!(format, Format::Q2K | Format::Iq2Xxs)
    }
}

/// One block of 16 tokens; zeros stand in for tokens that are missing.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Columns {
    /// Four consecutive codes of each token.
    pub(crate) codes: [[[i8; 4]; TOKENS]; Q8K_BLOCK / 4],
    /// The 16 sums of 16 codes each, `16 * high + low`: all high parts, all low parts, zeros.
    pub(crate) sums: [[[i8; 4]; TOKENS]; 16],
    pub(crate) scales: [f32; TOKENS],
}

impl Columns {
    pub(crate) const ZERO: Self = Self {
        codes: [[[0; 4]; TOKENS]; Q8K_BLOCK / 4],
        sums: [[[0; 4]; TOKENS]; 16],
        scales: [0.0; TOKENS],
    };
}

/// The tokens of a product.
pub(crate) struct Tiled {
    pub(crate) count: usize,
    /// Blocks of a token.
    pub(crate) blocks: usize,
    /// `[tiles][blocks]`.
    pub(crate) columns: Vec<Columns>,
}
