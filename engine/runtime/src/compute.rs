//! The one thread that computes.
//!
//! Jobs of all sessions run in the order in which they come. A session asks for its next chunk or token only when it has the last one, so
//! sessions alternate: none waits for more than one job of every other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A job that did not end: it panicked, or the thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("compute: the job ended without a result")]
pub(crate) struct Lost;

/// Handle to the thread, which ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct Compute {
    jobs: mpsc::Sender<Job>,
}

impl Compute {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            for job in queue {
                // The caller sees its result missing; other sessions go on.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        };
        let started = std::thread::Builder::new().name("ds4-compute".into()).spawn(work);
        if let Err(error) = started {
            // Every job then ends as lost.
            tracing::error!(%error, "the compute thread does not start");
        }
        Self { jobs }
    }

    /// Runs `work` when its turn comes, whoever waits for it.
    pub(crate) fn send(&self, work: impl FnOnce() + Send + 'static) {
        // Without the thread there is nothing left to work on.
        let _ = self.jobs.send(Box::new(work));
    }

    /// Runs `work` when its turn comes; not at all when the caller has gone by then.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (done, result) = oneshot::channel();
        let job = move || {
            if !done.is_closed() {
                // A caller that went meanwhile does not need the result.
                let _ = done.send(work());
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| Lost)?;
        result.await.map_err(|_| Lost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn jobs_run_in_the_order_in_which_they_come_and_a_panic_harms_only_its_own() {
        let (compute, order) = (Compute::start(), Arc::new(Mutex::new(Vec::new())));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        compute.send(move || gate.recv().expect("opened"));
        for session in ['a', 'b', 'a', 'b'] {
            let order = Arc::clone(&order);
            compute.send(move || order.lock().expect("sound").push(session));
        }
        compute.send(|| panic!("a defect"));
        open.send(()).expect("it waits");
        assert!(compute.run(|| panic!("another")).await.is_err());
        assert_eq!(compute.run(|| 7).await.ok(), Some(7));
        assert_eq!(*order.lock().expect("sound"), ['a', 'b', 'a', 'b']);
    }
}
