//! A few threads that stay, for regions of some microseconds: fork and join must cost less than the work.
//!
//! A region is a function and a number of tasks. Its caller takes tasks too, so a pool of `n` has `n - 1` threads of its own. Tasks are
//! claimed one by one from a counter; what a task computes never depends on who computes it.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::placement;

/// Turns of the spin before a thread sleeps: some 50 microseconds (a pause takes about 40 cycles on Zen 4), more than the serial parts
/// between the regions of a layer and less than a person or another process would notice.
const SPIN: usize = if cfg!(miri) { 2 } else { 4000 };

/// Where the task number starts in [`Shared::ticket`].
const TASK_BITS: u32 = 32;
/// Task number of a region that cannot be claimed from.
const CLOSED: u64 = u32::MAX as u64;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that wait for regions.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// One region at a time; other callers wait here.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Region number and next task: one word, so that a late thread cannot claim from a region that it did not read.
    ticket: AtomicU64,
    /// The region's function: a `Task` on its caller's stack.
    task: AtomicPtr<()>,
    tasks: AtomicUsize,
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Threads that sleep until a region comes.
    idle: AtomicUsize,
    /// Whether the caller sleeps until the last task is done.
    joining: AtomicBool,
    gate: Mutex<()>,
    begun: Condvar,
    ended: Condvar,
    spin: usize,
}

thread_local! {
    /// Whether this thread is inside a region: a region within a region runs in place.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// `threads` counts the caller.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let cores = placement::cores(threads);
        let shared = Arc::new(Shared::new(if threads <= placement::limit() { SPIN } else { 1 }));
        let start = |i: usize| {
            let shared = shared.clone();
            let core = cores.as_ref().map(|cores| cores[i]);
            let body = move || {
                if let Some(core) = core {
                    placement::pin(core);
                }
                shared.work();
            };
            std::thread::Builder::new()
                .name(format!("compute-{i}"))
                .spawn(body)
        };
        let workers = (1..threads).map(start).collect::<Result<_, _>>()?;
        Ok(Self {
            shared,
            turn: Mutex::new(()),
            workers,
        })
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < tasks` and returns when all are done.
    ///
    /// # Panics
    /// With the first panic of a task, after all the others are done.
    pub(crate) fn run(&self, tasks: usize, task: Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            return (0..tasks).for_each(task);
        }
        assert!((tasks as u64) < CLOSED, "{tasks} tasks in one region");
        let turn = lock(&self.turn);
        let panic = self.shared.region(tasks, &task);
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.gate));
        self.shared.begun.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends by returning.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn new(spin: usize) -> Self {
        Self {
            ticket: AtomicU64::new(CLOSED),
            task: AtomicPtr::new(std::ptr::null_mut()),
            tasks: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
            joining: AtomicBool::new(false),
            gate: Mutex::new(()),
            begun: Condvar::new(),
            ended: Condvar::new(),
            spin,
        }
    }

    /// Opens a region, works in it, and waits for its end. Only one thread at a time is in here.
    fn region(&self, tasks: usize, task: &Task<'_>) -> Option<Box<dyn Any + Send>> {
        let number = (self.ticket.load(Ordering::Relaxed) >> TASK_BITS) + 1;
        // The last region ended closed (see below), so nobody claims while the fields change.
        self.task
            .store(std::ptr::from_ref(task).cast_mut().cast(), Ordering::Release);
        self.tasks.store(tasks, Ordering::Release);
        self.done.store(0, Ordering::Release);
        self.ticket.store(number << TASK_BITS, Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            self.begun.notify_all();
        }
        INSIDE.set(true);
        while self.claim_and_do() {}
        INSIDE.set(false);
        self.join(tasks);
        self.ticket.store(number << TASK_BITS | CLOSED, Ordering::SeqCst);
        lock(&self.panic).take()
    }

    /// Takes one task of the open region, if there is one left.
    fn claim_and_do(&self) -> bool {
        let ticket = self.ticket.load(Ordering::SeqCst);
        let (tasks, next) = (self.tasks.load(Ordering::Acquire), ticket & CLOSED);
        let task = self.task.load(Ordering::Acquire);
        if next >= tasks as u64 {
            return false;
        }
        let claimed = self
            .ticket
            .compare_exchange(ticket, ticket + 1, Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err() {
            return true; // another thread was faster, or the region is over: look again
        }
        // SAFETY: the claim succeeded, so `ticket` was still current and its region open: `task` and `tasks` are that region's, because they
        // change only while the ticket is closed, and its caller stays in `region`, keeping the function alive, until this task is counted.
        let task = unsafe { &*task.cast_const().cast::<Task<'_>>() };
        #[allow(clippy::cast_possible_truncation)] // below `tasks`
        let outcome = catch_unwind(AssertUnwindSafe(|| task(next as usize)));
        if let Err(panic) = outcome {
            lock(&self.panic).get_or_insert(panic);
        }
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == tasks && self.joining.load(Ordering::SeqCst) {
            drop(lock(&self.gate));
            self.ended.notify_all();
        }
        true
    }

    fn join(&self, tasks: usize) {
        let all_done = || self.done.load(Ordering::SeqCst) == tasks;
        if spin(self.spin, all_done) {
            return;
        }
        self.joining.store(true, Ordering::SeqCst);
        let mut gate = lock(&self.gate);
        while !all_done() {
            gate = self.ended.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.joining.store(false, Ordering::SeqCst);
    }

    /// The life of a thread.
    fn work(&self) {
        INSIDE.set(true);
        let open = || {
            let next = self.ticket.load(Ordering::SeqCst) & CLOSED;
            next < self.tasks.load(Ordering::Acquire) as u64 || self.stop.load(Ordering::SeqCst)
        };
        while !self.stop.load(Ordering::SeqCst) {
            while self.claim_and_do() {}
            if !spin(self.spin, open) {
                self.sleep(open);
            }
        }
    }

    fn sleep(&self, awake: impl Fn() -> bool) {
        let mut gate = lock(&self.gate);
        self.idle.fetch_add(1, Ordering::SeqCst);
        while !awake() {
            gate = self.begun.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether `condition` came true within `turns`.
fn spin(turns: usize, condition: impl Fn() -> bool) -> bool {
    (0..turns).any(|_| {
        std::hint::spin_loop();
        condition()
    })
}

/// The data under these locks is whole whatever a holder did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 4 } else { 3000 };

    #[test]
    fn every_task_runs_once_in_region_after_region() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).expect("threads");
            for round in 0..ROUNDS {
                let counts: Vec<AtomicUsize> = (0..round % 9).map(|_| AtomicUsize::new(0)).collect();
                pool.run(counts.len(), &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn callers_on_several_threads_each_get_all_their_tasks() {
        let pool = Pool::new(3).expect("threads");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_region_within_a_region_runs_in_place() {
        let (pool, count) = (Pool::new(2).expect("threads"), AtomicUsize::new(0));
        pool.run(4, &|_| {
            pool.run(5, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(count.into_inner(), 20);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).expect("threads");
        for bad in [0, 7] {
            let done = AtomicUsize::new(0);
            let region = || {
                pool.run(8, &|i| {
                    assert!(i != bad, "task {i}");
                    done.fetch_add(1, Ordering::Relaxed);
                })
            };
            let panic = catch_unwind(AssertUnwindSafe(region)).expect_err("a task panics");
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("task {bad}")));
            assert_eq!(done.into_inner(), 7, "the others are done");
        }
        pool.run(3, &|_| ());
    }

    #[test]
    fn sleeping_threads_wake_for_work() {
        let pool = Pool::new(3).expect("threads");
        for _ in 0..3 {
            while pool.shared.idle.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            let (first, barrier) = (AtomicUsize::new(0), std::sync::Barrier::new(3));
            pool.run(3, &|_| {
                barrier.wait(); // passes only when three threads are in the region
                first.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(first.into_inner(), 3);
        }
    }
}
