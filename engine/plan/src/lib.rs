//! Which layers go to which machine. Pure numbers: no file, no cluster, so that `ds4 inspect` and `kubectl ds4 split` ask the same planner.
//!
//! Every stage holds its own layers. The last machine decodes after the handoff, so it holds the whole model and the KV of all layers, and
//! computes its share of prefill too. Prefill is a pipeline: its slowest stage sets the pace, and the planner makes that one as fast as it can.

mod balance;
mod cost;
mod error;
mod parts;

pub use balance::{Share, arrange, split};
pub use cost::Machine;
pub use error::PlanError;
pub use parts::{Part, Parts, Span};
