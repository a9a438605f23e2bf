//! A run of layers on a CUDA device.
//!
//! [`CudaSlice`] is the device's counterpart of `ds4_model::Graph`: weights are resident, every session's KV lies on the device in its canonical bytes, and what a
//! call computed comes back to the host's [`ds4_model::Kv`], layer by layer beside the computing of the next, so that handoff, storage and everything else work as with any other
//! back end. Every kernel gives the bits of its scalar reference, so the logits are those of the CPU back end, bit for bit.

use ds4_kernels_cuda as kernels;

// Of the pass over a device's kernels, what reads the same on every device.
#[path = "../../device/compress.rs"]
mod compress;
#[path = "../../device/input.rs"]
mod input;
#[path = "../../device/select.rs"]
mod select;
#[path = "../../device/session.rs"]
mod session;

mod attention;
mod feed_forward;
mod load;
mod outgoing;
mod pass;
mod slice;

pub use slice::CudaSlice;
