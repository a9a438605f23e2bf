//! Traces, logs and metrics: one place for set-up, one for every name.

mod init;
pub mod metrics;
pub mod names;
pub mod propagation;

pub use init::{Guard, LogFormat, TelemetryError, TelemetryOptions, init};
