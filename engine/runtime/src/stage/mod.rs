//! A stage: serves one run of layers to any number of sessions.

mod server;
mod service;
mod session;
mod worker;

pub use server::{StageOptions, StageServer};
