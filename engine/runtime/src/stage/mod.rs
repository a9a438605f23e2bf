//! A stage: serves one run of layers to any number of sessions.

mod answer;
mod handoff;
mod onward;
mod refusal;
mod server;
mod service;
mod session;
mod table;
mod worker;

pub(crate) use refusal::retry_after;
pub use server::{StageOptions, StageServer};
pub(crate) use session::shares;
#[cfg(test)]
pub(crate) use {session::Sessions, table::Totals};
