//! The processor back end: the vector instructions that the machine has, threads over output elements.
//!
//! Every result has the bits of the scalar reference in `ds4-kernels`: integer block dots are exact, `f32` dots use the same 32 lanes,
//! and threads never share a sum.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod beside;
mod cpu;
#[cfg(target_arch = "x86_64")]
mod indexer;
mod kernels;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod level;
mod mixture;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operands;
mod ops;
#[cfg(target_arch = "x86_64")]
mod panel;
mod placement;
mod plain;
mod pool;
mod product;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod q4_k;
mod roofline;
mod shared;
mod tiled;

pub mod matmuls;
pub mod peak;

pub use cpu::{Cpu, CpuError};
pub use level::Level;
pub use roofline::Roofline;
