//! The HTTP surface over a real engine and a small random model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod anthropic;
mod forms;
mod malformed;
mod mutated;
mod openai;
mod responses;
mod support;
mod wire;
