//! The HTTP surface of the output pod: OpenAI's completions, health, readiness, metrics.

mod answer;
mod app;
mod completions;
mod error;
mod health;
mod request;
mod response;
mod serve;
mod stop;

pub use app::{App, AppOptions, Loaded};
pub use serve::{router, serve};

/// The header that says how a prompt was computed.
pub const DECISION_HEADER: &str = "x-ds4-disaggregation";
