//! Whether the route stands: asked at start, at intervals, and after every failure.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use crate::RouteError;
use crate::route::{Route, RouteState};

/// How often the route is asked again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Asks the stages until they answer, and again at intervals and after failures.
pub(super) async fn watch_route(engine: std::sync::Weak<Engine>) {
    let (mut wait, mut doubted) = (BACKOFF.0, true);
    loop {
        let Some(engine) = engine.upgrade() else { return };
        if engine.stop.is_cancelled() {
            return;
        }
        wait = if (!doubted && engine.vouched()) || engine.connect(&[]).await.is_ok() {
            BACKOFF.1
        } else {
            (wait * 2).min(BACKOFF.1)
        };
        doubted = tokio::select! {
            biased;
            () = engine.recheck.notified() => true,
            () = engine.stop.cancelled() => true,
            () = tokio::time::sleep(wait) => false,
        };
    }
}

impl Engine {
    /// Whether renewed leases have just shown that every stage of the route is there, and is the process that it was.
    fn vouched(&self) -> bool {
        let known = self.route.borrow();
        let (RouteState::Complete, Some(route)) = &*known else {
            return false;
        };
        self.leases.vouch(route.endpoints(), BACKOFF.1)
    }

    /// Asks every stage and spare now but those in `avoid`, and takes note of what they said.
    pub(super) async fn connect(&self, avoid: &[String]) -> Result<Route, RouteError> {
        let found = Route::connect(&self.pool, &self.places, self.slice.info(), self.own, avoid).await;
        let next = match &found {
            Ok(route) => {
                self.was_complete.store(true, Ordering::Relaxed);
                (RouteState::Complete, Some(route.clone()))
            }
            Err(error) => (
                RouteState::Incomplete {
                    reason: error.to_string(),
                },
                None,
            ),
        };
        if self.route.borrow().0 != next.0 {
            tracing::info!(state = ?next.0, "route");
        }
        self.route.send_replace(next);
        found
    }
}
