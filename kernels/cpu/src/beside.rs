//! A few quantised tokens beside each other: lanes are tokens, and a row goes to all of them from where it lies.

// AVX-512 and NEON have kernels that read them.
#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]

use ds4_kernels::Q8_BLOCK;

use crate::operands::Token;

/// Tokens beside each other: a register of 64 bytes has eight codes of each.
pub(crate) const MOST: usize = 8;
/// With fewer of them, every token by itself waits for memory already.
const LEAST: usize = 4;

/// One block of all tokens; where there are fewer than [`MOST`], zeros stand in for them.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Line {
    /// Eight codes of each token, four times.
    pub(crate) codes: [[[i8; 8]; MOST]; Q8_BLOCK / 8],
    /// Where the sums of the first and of the last four of each eight codes begin: the offset counts once.
    pub(crate) offsets: [[i32; 2]; MOST],
    /// Two tokens by two rows at a time, in the order in which the sums come.
    pub(crate) scales: [[[f32; 2]; 2]; MOST / 2],
}

/// The tokens of a product.
pub(crate) struct Beside {
    pub(crate) count: usize,
    /// Block after block.
    pub(crate) lines: Vec<Line>,
}

impl Beside {
    /// `None` unless there are a few tokens, in blocks of 32.
    pub(crate) fn of(tokens: &[Token<'_>], block: usize) -> Option<Self> {
        if block != Q8_BLOCK || !(LEAST..=MOST).contains(&tokens.len()) {
            return None;
        }
        let mut lines = vec![Line::default(); tokens[0].scales.len()];
        for (t, token) in tokens.iter().enumerate() {
            token.check(lines.len() * Q8_BLOCK, Q8_BLOCK);
            let blocks = token.codes.as_chunks::<8>().0.as_chunks::<4>().0;
            let blocks = blocks.iter().zip(token.offsets).zip(token.scales);
            for (line, ((codes, offset), scale)) in lines.iter_mut().zip(blocks) {
                for (line, codes) in line.codes.iter_mut().zip(codes) {
                    line[t] = *codes;
                }
                line.offsets[t][0] = *offset;
                for of_row in &mut line.scales[t / 2] {
                    of_row[t % 2] = *scale;
                }
            }
        }
        Some(Self {
            count: tokens.len(),
            lines,
        })
    }
}
