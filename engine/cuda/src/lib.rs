//! A run of layers on a CUDA device.
//!
//! [`CudaSlice`] is the device's counterpart of `ds4_model::Graph`: weights are resident, every session's KV lies on the device in its canonical bytes, and what a
//! call computed comes back to the host's [`ds4_model::Kv`], layer by layer beside the computing of the next, so that handoff, storage and everything else work as with any other
//! back end. Every kernel gives the bits of its scalar reference, so the logits are those of the CPU back end, bit for bit.

use ds4_kernels_cuda as kernels;

// Of the pass over a device's kernels, what reads the same on every device.
#[path = "../../device/check.rs"]
mod check;
#[path = "../../device/chunk.rs"]
mod chunk;
#[path = "../../device/compress.rs"]
mod compress;
#[path = "../../device/forward.rs"]
mod forward;
#[path = "../../device/input.rs"]
mod input;
#[path = "../../device/load.rs"]
mod load;
#[path = "../../device/missing.rs"]
mod missing;
#[path = "../../device/select.rs"]
mod select;
#[path = "../../device/session.rs"]
mod session;
#[path = "../../device/tensors.rs"]
mod tensors;
#[path = "../../device/widened.rs"]
mod widened;

mod attention;
mod feed_forward;
mod loader;
mod outgoing;
mod pass;
mod room;
mod slice;

pub use slice::{CudaSlice, Decode};

/// The slice and its device by the names that code for every device uses.
use slice::CudaSlice as Loaded;
const DEVICE: &str = "a CUDA device";
