//! Every CUDA kernel beside its scalar reference, bit for bit, on random operands.
//!
//! A [`Case`] draws shapes and operands from its [`Bench`], computes them on the device and by the reference of `ds4-kernels`, and says where they
//! differ. The tests of this crate run all cases on the emulated device in several orders of threads; `ds4-gpu-check` runs the same ones on a real GPU.

mod bench;
mod ops;
mod random;

pub use bench::{Bench, Failure, Outcome};
pub use random::Random;

/// One operation and the kernels whose results it compares.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is computed.
    pub name: &'static str,
    /// The kernels that it launches, for some number of tokens.
    pub kernels: &'static [&'static str],
    /// Computes and compares.
    pub run: fn(&mut Bench<'_>) -> Outcome,
}

/// All cases. Together they launch every kernel of [`ds4_kernels_cuda::TABLE`].
pub fn cases() -> impl Iterator<Item = &'static Case> {
    ops::ALL.iter().flat_map(|cases| cases.iter())
}
