//! The HTTP surface of the output pod: the APIs of OpenAI and Anthropic, health, readiness, metrics.
//!
//! A request of any dialect becomes one `Ask`; the engine's tokens become the parts of a `Turn`; a `Dialect` says them.

mod anthropic;
mod app;
mod ask;
mod dialect;
mod drive;
mod error;
mod guide;
mod health;
mod journal;
mod keys;
mod listener;
mod openai;
mod openapi;
mod page;
mod respond;
mod serve;
mod stop;
mod turn;

pub use app::{App, AppOptions, Loaded};
pub use keys::{Limits, read_keys};
pub use listener::serve;
pub use serve::router;

/// The header that says how a prompt was computed.
pub const DECISION_HEADER: &str = "x-ds4-disaggregation";

/// Answers of equal builds with equal seeds are equal.
pub(crate) const FINGERPRINT: &str = concat!("ds4-", env!("CARGO_PKG_VERSION"));
