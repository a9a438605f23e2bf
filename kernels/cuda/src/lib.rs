//! The model's operations as CUDA kernels, and the host code that launches them.
//!
//! `cu/` has the kernels, one file per family; the module of the same name here checks shapes and launches them. Every kernel gives the bits of its scalar
//! reference in `ds4-kernels`: integers are exact, the order of every addition is fixed, and the functions are the same fixed polynomials.
//!
//! Nothing of CUDA is needed to build or to start: the driver is looked for when a [`Device`] is opened, and [`CudaError`] says what is missing.

mod arena;
mod buffer;
mod device;
mod error;
mod graph;
mod launch;
mod pinned;
mod readback;
mod segments;
mod uploads;

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
pub mod fatbin;
pub mod indexer;
pub mod matmul;
pub mod matrix;
pub mod peak;
pub mod router;

pub use arena::{Arena, Mark};
pub use buffer::{Buffer, Element, Slice};
pub use device::{Device, Facts, IMAGE, present};
pub use error::CudaError;
/// The error by the name that code for every device uses.
pub use error::CudaError as DeviceError;
pub use graph::Graphs;
use launch::Shape;
pub use launch::{Signature, TABLE};
pub use readback::{Readback, Staging};
pub use segments::Segments;
pub use uploads::{Uploads, Way};
