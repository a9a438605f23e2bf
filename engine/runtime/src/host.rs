//! What sessions run on: where they are computed, how other pods are reached, and what time it is.

use std::sync::Arc;
use std::time::Instant;

use crate::compute::Compute;
use crate::net::{Dialer, Tls};

/// A thread that computes and a way to connect. Tests put a task and a network of their own in their place.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) compute: Compute,
    pub(crate) dialer: Dialer,
}

impl Host {
    /// This process.
    pub(crate) fn real(tls: Option<Arc<Tls>>) -> Self {
        Self {
            compute: Compute::start(),
            dialer: Dialer::new(tls),
        }
    }
}

/// The time by which leases lapse: that of the runtime's clock, which tests turn.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
