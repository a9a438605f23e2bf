//! Why no split was found.

use thiserror::Error;

/// Why no split was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No machine, or more machines than layers.
    #[error("machines: expected 1 to {layers} (the model's layers), found {found}")]
    Machines {
        /// Layers of the model.
        layers: usize,
        /// Machines given.
        found: usize,
    },
    /// The machine that decodes is too small for the model.
    #[error(
        "machine {at} (the last one decodes and holds every layer): expected at least {expected} bytes, found {found}{hint}"
    )]
    Output {
        /// Number of the machine, from 1.
        at: usize,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
        /// What would help, or nothing.
        hint: String,
    },
    /// The other machines do not hold the layers that they would have to compute.
    #[error(
        "machines 1 to {machines}: expected room for one layer each, found {found} bytes on the smallest and {expected} needed"
    )]
    Stages {
        /// Machines before the last.
        machines: usize,
        /// Bytes that the smallest layer takes.
        expected: u64,
        /// Bytes of the smallest machine.
        found: u64,
    },
}
