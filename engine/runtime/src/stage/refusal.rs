//! Refusals as gRPC says them.

use std::time::Duration;

use ds4_model::ModelError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::table::{Fenced, Refusal};
use crate::frames::Difference;

/// A message that is not what it must be.
pub(crate) fn refused((field, expected, found): Difference) -> Status {
    Status::invalid_argument(format!("{field}: expected {expected}, found {found}"))
}

/// Why a session is not opened. Where waiting helps, the details say for how long.
pub(crate) fn refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Epoch { .. } => Code::FailedPrecondition,
        Refusal::Sessions { .. } | Refusal::Budget { .. } => Code::ResourceExhausted,
        Refusal::TooLarge { .. } => Code::OutOfRange,
        Refusal::Draining => Code::Unavailable,
    };
    match refusal.retry_after() {
        None => Status::new(code, refusal.to_string()),
        Some(after) => Status::with_error_details(
            code,
            refusal.to_string(),
            ErrorDetails::with_retry_info(Some(after)),
        ),
    }
}

/// Why a chunk is not computed: the device's fault, or that of what came.
pub(crate) fn uncomputed(error: &ModelError) -> Status {
    match error {
        ModelError::Device { .. } => Status::internal(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}

/// How long to wait, as the other end said it.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Why a call does not reach its session.
pub(crate) fn fenced(fenced: &Fenced) -> Status {
    match fenced {
        Fenced::Epoch { .. } => Status::failed_precondition(fenced.to_string()),
        Fenced::Unknown { .. } => Status::not_found(fenced.to_string()),
    }
}
