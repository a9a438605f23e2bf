//! The whole model on the emulated device: the bits of the CPU back end, golden logits, and sessions that change the back end.
#![allow(clippy::unwrap_used)]

mod equal;
mod golden;
mod handoff;
mod leaving;
mod loading;
#[path = "../../../model/tests/it/support.rs"]
#[allow(dead_code)] // of another crate's tests: the model and what is done with it
mod model;
mod support;
