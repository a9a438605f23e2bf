//! The one thread that computes.
//!
//! Jobs run in the order in which they come; each may change what the thread works on. While there is such work, the thread does one part of it
//! after the other and looks at the jobs in between, so that no job waits for more than one part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;

/// What the thread works on besides jobs.
pub(crate) trait Work: Send + 'static {
    /// Whether a part of it can be done now, or how long to wait for a job first. None: there is nothing to do.
    fn due(&self) -> Option<Duration>;

    /// Does one part.
    fn part(&mut self);
}

/// Jobs only.
impl Work for () {
    fn due(&self) -> Option<Duration> {
        None
    }

    fn part(&mut self) {}
}

type Job<W> = Box<dyn FnOnce(&mut W) + Send>;

/// A job that did not end: it panicked, or the thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("compute: the job ended without a result")]
pub(crate) struct Lost;

/// Handle to the thread, which ends with the last handle.
#[derive(Debug)]
pub(crate) struct Compute<W = ()> {
    jobs: mpsc::Sender<Job<W>>,
}

impl<W> Clone for Compute<W> {
    fn clone(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
        }
    }
}

impl<W: Work> Compute<W> {
    /// Starts the thread.
    pub(crate) fn start(work: W) -> Self {
        let (jobs, queue) = mpsc::channel();
        let started = std::thread::Builder::new()
            .name("ds4-compute".into())
            .spawn(move || run(work, &queue));
        if let Err(error) = started {
            // Every job then ends as lost.
            tracing::error!(%error, "the compute thread does not start");
        }
        Self { jobs }
    }

    /// Changes what the thread works on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut W) + Send + 'static) {
        // Without the thread there is nothing left to work on.
        let _ = self.jobs.send(Box::new(change));
    }

    /// Runs `work` when its turn comes, whoever waits for it.
    pub(crate) fn send(&self, work: impl FnOnce() + Send + 'static) {
        self.change(|_| work());
    }

    /// Runs `work` when its turn comes; not at all when the caller has gone by then.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (done, result) = oneshot::channel();
        self.send(move || {
            if !done.is_closed() {
                // A caller that went meanwhile does not need the result.
                let _ = done.send(work());
            }
        });
        result.await.map_err(|_| Lost)
    }
}

/// Until the last handle is gone and nothing is left to do.
fn run<W: Work>(mut work: W, queue: &Receiver<Job<W>>) {
    loop {
        let job = match work.due() {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => queue.recv_timeout(patience),
        };
        // The caller of what panics sees its result missing; others go on.
        let done = match job {
            Ok(job) => catch_unwind(AssertUnwindSafe(|| job(&mut work))),
            Err(_) if work.due().is_some() => catch_unwind(AssertUnwindSafe(|| work.part())),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        drop(done);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn jobs_run_in_the_order_in_which_they_come_and_a_panic_harms_only_its_own() {
        let (compute, order) = (Compute::start(()), Arc::new(Mutex::new(Vec::new())));
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

    /// Counts down, and says where it stands when a job comes.
    struct Countdown(u32, Arc<Mutex<Vec<u32>>>);

    impl Work for Countdown {
        fn due(&self) -> Option<Duration> {
            (self.0 > 0).then_some(Duration::ZERO)
        }

        fn part(&mut self) {
            self.0 -= 1;
            self.1.lock().expect("sound").push(self.0);
            assert!(self.0 != 2, "a defect");
        }
    }

    #[tokio::test]
    async fn work_goes_on_between_jobs_and_after_a_panic_and_ends_before_the_thread_does() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let compute = Compute::start(Countdown(0, Arc::clone(&seen)));
        compute.change(|work| work.0 = 4);
        while seen.lock().expect("sound").len() < 4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*seen.lock().expect("sound"), [3, 2, 1, 0]);
        assert_eq!(compute.run(|| 7).await.ok(), Some(7));
    }
}
