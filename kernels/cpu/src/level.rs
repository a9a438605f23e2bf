//! Which instructions are used.

use std::fmt;

use ds4_kernels::block::Block;

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// No vector instructions of our own.
    Scalar,
    /// AVX2 with fused multiply-add.
    Avx2,
}

impl Level {
    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return Self::Avx2;
        }
        Self::Scalar
    }

    /// Whether this machine can run it.
    #[must_use]
    pub fn available(self) -> bool {
        self == Self::Scalar || self == Self::detect()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
        })
    }
}

/// The inner products at one level.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    pub(crate) dot: fn(&[f32], &[f32]) -> f32,
    pub(crate) axpy: fn(f32, &[f32], &mut [f32]),
    pub(crate) block: fn(&Block, &[i8]) -> (i32, i32),
}

impl Inner {
    /// The functions of `level`, or the scalar ones where the machine lacks it.
    pub(crate) fn of(level: Level) -> Self {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx2 && level.available() {
            return crate::avx2::INNER;
        }
        let _ = level;
        Self {
            dot: ds4_kernels::dot_f32,
            axpy: |factor, x, y| ds4_kernels::Backend::axpy(&ds4_kernels::Scalar, factor, x, y),
            block: Block::dot,
        }
    }
}
