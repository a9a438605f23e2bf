//! Sessions: stages that prefill, the route that connects them, the handoff of their KV, and local decode.
//!
//! A stage ([`StageServer`]) serves one [`ds4_model::ModelSlice`]. The output pod's [`Engine`] drives a [`Route`] of stages and decodes alone.

mod chunk;
mod compute;
mod describe;
mod engine;
mod error;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod host;
mod net;
mod planted;
mod route;
mod shards;
#[cfg(test)]
mod sim;
mod stage;
mod store;
mod watched;

pub use describe::{Identity, Incompatible};
pub use engine::{Adaptive, Choice, Demand, Flow, Priority, Reason, Way};
pub use engine::{Engine, EngineOptions, EngineStatus, LogitsReport, OnFailure, Policy};
pub use error::{EngineError, RouteError, StageError};
pub use generate::{Decision, Event, FinishReason, Finished, Generate, Generation, Guesses, Handed, Timings};
pub use net::{Dialer, Tls, TlsError};
pub use route::{HandoffReport, Route, RouteOptions, RouteState};
pub use stage::{StageOptions, StageServer};
pub use store::{SessionFileError, SessionStore};
