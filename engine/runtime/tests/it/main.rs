//! Sessions over loopback: real stages, real gRPC, and what goes wrong between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod equal;
mod faults;
mod fencing;
mod meddle;
mod support;
mod tamper;
