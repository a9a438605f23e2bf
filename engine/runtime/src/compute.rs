//! The one thread that computes.
//!
//! Jobs of all sessions run in the order in which they come. A session asks for its next chunk or token only when it has the last one, so
//! sessions alternate: none waits for more than one job of every other.

use ds4_model::stop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// A job that did not end: it panicked, or the thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("compute: the job ended without a result")]
pub(crate) struct Lost;

/// Handle to the thread, which ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct Compute {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Compute {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let work = move || {
            while let Some(job) = queue.blocking_recv() {
                work_off(job);
            }
        };
        let started = std::thread::Builder::new().name("ds4-compute".into()).spawn(work);
        if let Err(error) = started {
            // Every job then ends as lost.
            tracing::error!(%error, "the compute thread does not start");
        }
        Self { jobs }
    }

    /// In place of the thread a task, whose jobs take no time but the pauses between them: for tests that turn the clock.
    #[cfg(test)]
    pub(crate) fn simulated(pause: impl Fn() -> std::time::Duration + Send + 'static) -> Self {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        tokio::spawn(async move {
            while let Some(job) = queue.recv().await {
                tokio::time::sleep(pause()).await;
                work_off(job);
            }
        });
        Self { jobs }
    }

    /// Runs `work` when its turn comes, whoever waits for it.
    pub(crate) fn send(&self, work: impl FnOnce() + Send + 'static) {
        // Without the thread there is nothing left to work on.
        let _ = self.jobs.send(Box::new(work));
    }

    /// Runs `work` when its turn comes; not at all when the caller has gone by then. When it goes meanwhile, the model ends after the layer
    /// that it is in.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (done, result) = oneshot::channel();
        let stop = StopOnDrop::default();
        let flag = Arc::clone(&stop.0);
        let job = move || {
            if !done.is_closed() {
                // A caller that went meanwhile does not need the result.
                let _ = done.send(stop::until(&flag, work));
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| Lost)?;
        result.await.map_err(|_| Lost)
    }
}

/// Tells the work that nobody waits for it any more.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The caller of a job that panics sees its result missing; other sessions go on.
fn work_off(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn work_whose_caller_has_gone_is_told_to_end() {
        let compute = Compute::start();
        let (begun, has_begun) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let work = move || {
            begun.send(()).expect("the test waits");
            while !stop::requested() {
                std::thread::yield_now();
            }
            ended.send(()).expect("the test waits");
        };
        let runs = compute.run(work);
        tokio::select! {
            biased;
            _ = runs => panic!("it ends only when told"),
            begun = has_begun => begun.expect("it runs"),
        }
        has_ended.await.expect("told");
        assert_eq!(
            compute.run(stop::requested).await.ok(),
            Some(false),
            "others are not"
        );
    }

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
