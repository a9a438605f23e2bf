//! The processor back end: AVX2 where the machine has it, threads over output elements.
//!
//! Every result has the bits of the scalar reference in `ds4-kernels`: integer block dots are exact, `f32` dots use the same 32 lanes,
//! and threads never share a sum.

#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod cpu;
#[cfg(target_arch = "x86_64")]
mod indexer;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod level;
mod ops;
mod placement;
mod pool;
mod shared;

pub use cpu::{Cpu, CpuError};
pub use level::Level;
