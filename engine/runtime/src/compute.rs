//! The one thread that computes.
//!
//! Jobs run in the order in which they come; each may change what the thread works on. While there is such work, the thread does one part of it
//! after the other and looks at the jobs in between, so that no job waits for more than one part.

use ds4_model::stop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
pub(crate) struct Compute<W = ()> {
    jobs: Queue<W>,
}

/// Takes a job; false: nobody works any more.
type Queue<W> = Arc<dyn Fn(Job<W>) -> bool + Send + Sync>;

impl<W> std::fmt::Debug for Compute<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute").finish_non_exhaustive()
    }
}

impl<W> Clone for Compute<W> {
    fn clone(&self) -> Self {
        Self {
            jobs: Arc::clone(&self.jobs),
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
        Self {
            jobs: Arc::new(move |job| jobs.send(job).is_ok()),
        }
    }

    /// In place of the thread a task, whose jobs and parts take no time but the pauses between them: for tests that turn the clock.
    #[cfg(test)]
    pub(crate) fn simulated(mut work: W, pause: impl Fn() -> Duration + Send + 'static) -> Self {
        let (jobs, mut queue) = tokio::sync::mpsc::unbounded_channel::<Job<W>>();
        tokio::spawn(async move {
            loop {
                let job = match work.due() {
                    None => queue.recv().await.map(Some),
                    Some(patience) => match tokio::time::timeout(patience, queue.recv()).await {
                        Ok(None) if work.due().is_some() => Some(None),
                        Ok(job) => job.map(Some),
                        Err(_) => Some(None),
                    },
                };
                let Some(job) = job else { return };
                tokio::time::sleep(pause()).await;
                work_off(&mut work, job);
            }
        });
        Self {
            jobs: Arc::new(move |job| jobs.send(job).is_ok()),
        }
    }

    /// Changes what the thread works on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut W) + Send + 'static) {
        // Without the thread there is nothing left to work on.
        let _ = (self.jobs)(Box::new(change));
    }

    /// Runs `work` when its turn comes, whoever waits for it.
    pub(crate) fn send(&self, work: impl FnOnce() + Send + 'static) {
        self.change(|_| work());
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
        self.send(move || {
            if !done.is_closed() {
                // A caller that went meanwhile does not need the result.
                let _ = done.send(stop::until(&flag, work));
            }
        });
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

/// A job, or a part of the work. The caller of what panics sees its result missing; others go on.
fn work_off<W: Work>(work: &mut W, job: Option<Job<W>>) {
    let done = match job {
        Some(job) => catch_unwind(AssertUnwindSafe(|| job(work))),
        None => catch_unwind(AssertUnwindSafe(|| work.part())),
    };
    drop(done);
}

/// Until the last handle is gone and nothing is left to do.
fn run<W: Work>(mut work: W, queue: &Receiver<Job<W>>) {
    loop {
        let job = match work.due() {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => queue.recv_timeout(patience),
        };
        match job {
            Ok(job) => work_off(&mut work, Some(job)),
            Err(_) if work.due().is_some() => work_off(&mut work, None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn work_whose_caller_has_gone_is_told_to_end() {
        let compute = Compute::start(());
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
