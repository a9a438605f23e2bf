//! The model's operations as Metal kernels, and the host code that launches them.
//!
//! `metal/` has the kernels, one file per family; the module of the same name here checks shapes and launches them. Every kernel gives the bits of its scalar
//! reference in `ds4-kernels`: integers are exact, the order of every addition is fixed, and the functions are the same fixed polynomials. What is f64 in
//! the reference is f64 here, by integers. Products of many tokens go through `simdgroup_matrix` (`tiles.metal`) where the device has it; the plain kernels
//! give the same bits.
//!
//! All host code but [`Driver`]'s implementation for macOS is plain Rust: shapes, launches and memory are those that the emulator of `ds4-emu` runs on any
//! machine. Nothing of Metal is needed to build; [`Device::open`] says what is missing.

mod arena;
mod buffer;
mod device;
mod driver;
mod error;
mod launch;
mod source;

#[cfg(target_os = "macos")]
mod apple;

// Host code that reads the same for every device.
#[path = "../../device/chosen.rs"]
mod chosen;
#[path = "../../device/compressor.rs"]
pub mod compressor;
#[path = "../../device/hyper.rs"]
pub mod hyper;
#[path = "../../device/norm.rs"]
pub mod norm;

pub mod activation;
pub mod attention;
pub mod codec;
pub mod embedding;
pub mod experts;
pub mod indexer;
pub mod matmul;
pub mod matrix;
pub mod router;

pub use arena::{Arena, Mark};
pub use buffer::{Buffer, Element, Slice};
pub use device::Device;
pub use driver::{Binding, Driver, Facts, Launch, Memory, Shape};
pub use error::MetalError;
/// The error by the name that code for every device uses.
pub use error::MetalError as DeviceError;
pub use launch::{Kernel, Parameter, TABLE};
pub use source::source;
