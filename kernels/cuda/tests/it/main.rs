//! The host's side of a launch on the emulated device. What the kernels compute is compared in `kernels/suite`.
#![allow(clippy::unwrap_used)]

mod graph;
mod readback;
mod refusals;
mod table;
mod uploads;
