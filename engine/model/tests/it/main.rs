//! The model crate as its users see it: one binary, one module per subject.
#![allow(clippy::unwrap_used)]

mod batch;
mod draft;
mod exactness;
mod golden;
mod plan;
mod refusals;
mod resume;
mod shapes;
mod staging;
mod support;
