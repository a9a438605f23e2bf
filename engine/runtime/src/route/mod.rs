//! The stages of a pipeline as the output pod sees them.

mod connect;
mod handoff;
mod prefill;

pub(crate) use connect::channel;
pub use connect::{Route, RouteOptions, RouteState};
pub use handoff::HandoffReport;
pub(crate) use prefill::{Prefilled, Progress};
