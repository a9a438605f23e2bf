//! Which instructions are used.

use std::fmt;

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// No vector instructions of our own.
    Scalar,
    /// AVX2 with fused multiply-add and half-precision conversions.
    Avx2,
    /// AVX-512 (F, BW, VL) with VNNI, VBMI and GFNI: Ice Lake, Zen 4 and later.
    Avx512,
    /// AVX-512 with AMX's tiles of bytes, where the system gives them: Sapphire Rapids and later, Linux 5.16.
    Amx,
    /// NEON with the dot-product extension: Graviton 2, Apple M1, Grace and later.
    Neon,
    /// NEON with products of matrices of bytes too: Graviton 3, Apple M2, Grace and later.
    I8mm,
}

impl Level {
    /// Every level; the best that a machine has is the last.
    pub const ALL: [Self; 6] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Amx,
        Self::Neon,
        Self::I8mm,
    ];

    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        let best = Self::ALL.into_iter().rev().find(|level| level.available());
        best.unwrap_or(Self::Scalar)
    }

    /// Whether this machine can run it.
    #[must_use]
    pub fn available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Avx2 => avx2(),
            Self::Avx512 => avx2() && avx512(),
            Self::Amx => avx2() && avx512() && amx(),
            Self::Neon => neon(),
            Self::I8mm => neon() && i8mm(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    use std::is_x86_feature_detected as has;
    has!("avx2") && has!("fma") && has!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn avx512() -> bool {
    use std::is_x86_feature_detected as has;
    has!("avx512f")
        && has!("avx512bw")
        && has!("avx512vl")
        && has!("avx512vnni")
        && has!("avx512vbmi")
        && has!("gfni")
}

#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    crate::amx::permitted()
}

#[cfg(target_arch = "aarch64")]
fn neon() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

#[cfg(target_arch = "aarch64")]
fn i8mm() -> bool {
    std::arch::is_aarch64_feature_detected!("i8mm")
}

#[cfg(not(target_arch = "aarch64"))]
const fn neon() -> bool {
    false
}

#[cfg(not(target_arch = "aarch64"))]
const fn i8mm() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn amx() -> bool {
    false
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::I8mm => "i8mm",
        })
    }
}
