//! What goes past tonic in the extensions of an answer. These must be cloned; what is put there is taken once.

use std::sync::{Arc, Mutex, PoisonError};

use http::Extensions;

struct Beside<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Beside<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Puts `value` there, in place of another of its type.
pub(crate) fn put<T: Send + 'static>(extensions: &mut Extensions, value: T) {
    extensions.insert(Beside(Arc::new(Mutex::new(Some(value)))));
}

/// Takes what was put there, if it was.
pub(crate) fn take<T: Send + 'static>(extensions: &mut Extensions) -> Option<T> {
    let Beside(value) = extensions.remove()?;
    value.lock().unwrap_or_else(PoisonError::into_inner).take()
}
