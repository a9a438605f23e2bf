//! Which instructions are used.

use std::fmt;

use ds4_kernels::block::Block;
use ds4_kernels::{Format, unpack_row};

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// No vector instructions of our own.
    Scalar,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 with byte, vector-length and dot-product instructions (BW, VL, VNNI, VBMI).
    Avx512,
}

impl Level {
    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        [Self::Avx512, Self::Avx2]
            .into_iter()
            .find(|level| level.available())
            .unwrap_or(Self::Scalar)
    }

    /// Whether this machine can run it.
    #[must_use]
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
            let avx512 = std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512vnni")
                && std::is_x86_feature_detected!("avx512vbmi");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx2 && avx512,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// The inner products at one level.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    pub(crate) dot: fn(&[f32], &[f32]) -> f32,
    pub(crate) axpy: fn(f32, &[f32], &mut [f32]),
    pub(crate) block: fn(&Block, &Column<'_>, &mut [f32]),
    /// One `Q8_0` row against one token's codes and scales.
    pub(crate) q8_0: fn(&[u8], &[i8], &[f32]) -> f32,
}

/// The activations of all tokens that meet block `at` of a row.
pub(crate) struct Column<'a> {
    pub(crate) at: usize,
    /// Values per block.
    pub(crate) length: usize,
    /// `[tokens][cols]`.
    pub(crate) codes: &'a [i8],
    pub(crate) cols: usize,
    /// `[tokens][cols / length]`.
    pub(crate) scales: &'a [f32],
}

impl Column<'_> {
    /// Codes and scale of each token.
    #[inline]
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (&[i8], f32)> {
        let from = self.at * self.length;
        let codes = self
            .codes
            .chunks_exact(self.cols)
            .map(move |codes| &codes[from..from + self.length]);
        codes.zip(
            self.scales
                .iter()
                .skip(self.at)
                .step_by(self.cols / self.length)
                .copied(),
        )
    }
}

fn block(block: &Block, column: &Column<'_>, sums: &mut [f32]) {
    for (sum, (codes, scale)) in sums.iter_mut().zip(column.tokens()) {
        let (dot, minimums) = block.dot(codes);
        *sum = block.accumulate(*sum, scale, dot, minimums);
    }
}

fn q8_0(row: &[u8], codes: &[i8], scales: &[f32]) -> f32 {
    let blocks = unpack_row(Format::Q8_0, row);
    let parts = blocks
        .iter()
        .zip(codes.chunks_exact(Format::Q8_0.block_len()))
        .zip(scales);
    parts.fold(0.0, |sum, ((block, codes), scale)| {
        let (dot, minimums) = block.dot(codes);
        block.accumulate(sum, *scale, dot, minimums)
    })
}

impl Inner {
    /// The functions of `level`, or the scalar ones where the machine lacks it.
    pub(crate) fn of(level: Level) -> Self {
        #[cfg(target_arch = "x86_64")]
        if level != Level::Scalar && level.available() {
            return crate::avx2::INNER;
        }
        let _ = level;
        Self {
            dot: ds4_kernels::dot_f32,
            axpy: |factor, x, y| ds4_kernels::Backend::axpy(&ds4_kernels::Scalar, factor, x, y),
            block,
            q8_0,
        }
    }
}
