//! Fetching over real HTTP on loopback.

mod faults;
mod resume;
mod server;
mod sources;
mod support;
