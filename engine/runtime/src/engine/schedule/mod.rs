//! Who goes next. Pure: what waits and what was measured comes in, a choice goes out; no clock, no socket, no model.
//!
//! [`Clock`] shares work between clients, [`Room`] says who may begin, [`Pace`] says how much of which prompt joins the next pass, by what such
//! pieces have cost.

mod clock;
mod cost;
mod pace;
mod room;
#[cfg(test)]
mod tests;

pub use clock::{Flow, Priority};

pub(super) use clock::Clock;
pub(crate) use cost::{Costs, Piece};
#[cfg(test)]
use pace::Share;
pub(crate) use pace::{Kind, PIECE};
pub(super) use pace::{Pace, Waiting};
pub(super) use room::{Room, Waiter};
