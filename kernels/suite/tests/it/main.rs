//! Every kernel on the emulated device, and the faults that must show.
#![allow(clippy::unwrap_used)]

mod every_kernel;
mod planted;
mod spoiled;
mod support;
