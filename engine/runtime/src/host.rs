//! What sessions run on: where they are computed, how other pods are reached, and what time it is.

use std::sync::Arc;
use std::time::Instant;

use crate::compute::{Compute, Work};
use crate::net::{Dialer, Tls};

/// Where work is done and a way to connect. Tests put tasks and a network of their own in their place.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    workplace: Workplace,
    pub(crate) dialer: Dialer,
}

#[derive(Clone)]
enum Workplace {
    Thread,
    /// A task, which pauses so long before every piece of work.
    #[cfg(test)]
    Task(Arc<dyn Fn() -> std::time::Duration + Send + Sync>),
}

impl std::fmt::Debug for Workplace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workplace").finish_non_exhaustive()
    }
}

impl Host {
    /// This process.
    pub(crate) fn real(tls: Option<Arc<Tls>>) -> Self {
        Self {
            workplace: Workplace::Thread,
            dialer: Dialer::new(tls),
        }
    }

    #[cfg(test)]
    pub(crate) fn simulated(
        pause: impl Fn() -> std::time::Duration + Send + Sync + 'static,
        dialer: Dialer,
    ) -> Self {
        Self {
            workplace: Workplace::Task(Arc::new(pause)),
            dialer,
        }
    }

    /// Starts to work.
    pub(crate) fn compute<W: Work>(&self, work: W) -> Compute<W> {
        match &self.workplace {
            Workplace::Thread => Compute::start(work),
            #[cfg(test)]
            Workplace::Task(pause) => {
                let pause = Arc::clone(pause);
                Compute::simulated(work, move || pause())
            }
        }
    }
}

/// The time by which leases lapse: that of the runtime's clock, which tests turn.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
