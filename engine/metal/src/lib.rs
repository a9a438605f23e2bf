//! A run of layers on a Metal device.
//!
//! [`MetalSlice`] is the device's counterpart of `ds4_model::Graph`: weights are read from the mapped file without a copy, every session's KV lies in device
//! memory in its canonical bytes, and what a call computed is in the host's [`ds4_model::Kv`] when it returns, so that handoff, storage and everything else
//! work as with any other back end. Every kernel gives the bits of its scalar reference, so the logits are those of the CPU back end, bit for bit.

use ds4_kernels_metal as kernels;

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
mod pass;
mod slice;

pub use slice::MetalSlice;
