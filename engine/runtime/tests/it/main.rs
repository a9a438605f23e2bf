//! Sessions over loopback: real stages, real gRPC, and what goes wrong between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod ahead;
mod broken;
mod certificates;
mod draft;
mod drain;
mod equal;
mod faults;
mod fencing;
mod leases;
mod matrix;
mod meddle;
mod prefix;
mod proxy;
mod rows;
mod scheduling;
mod spares;
mod store;
mod support;
mod tamper;
mod turns;
