//! The stages of a pipeline as the output pod sees them.

mod connect;
mod handoff;
mod messages;
mod prefill;

pub(crate) use connect::Pool;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use connect::tiles;
pub use connect::{Route, RouteOptions, RouteState};
pub use handoff::HandoffReport;
pub(crate) use prefill::{Prefilled, Progress, Remote, Work, close};
