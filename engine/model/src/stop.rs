//! Ending a pass that nobody waits for any more: a long chunk takes seconds, a client that leaves does not wait for its end.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static STOP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Does `work` on this thread; passes in it end after the layer they are in once `stop` is set, with [`ModelError::Stopped`](crate::ModelError::Stopped).
pub fn until<T>(stop: &Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    let before = STOP.replace(Some(Arc::clone(stop)));
    let _restored = Restore(before);
    work()
}

/// Whether the work on this thread is to end.
#[must_use]
pub fn requested() -> bool {
    STOP.with_borrow(|stop| stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)))
}

/// Puts back what was there, after a panic as well.
struct Restore(Option<Arc<AtomicBool>>);

impl Drop for Restore {
    fn drop(&mut self) {
        STOP.set(self.0.take());
    }
}
