//! A place to die, for tests: whatever step an operator is killed at, its successor must get on.

/// The step after which the process ends, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failpoint(Option<String>);

impl Failpoint {
    pub(crate) const fn new(step: Option<String>) -> Self {
        Self(step)
    }

    /// Ends the process here when it was told to: at once, as a killed one.
    pub(crate) fn pass(&self, step: &str) {
        if self.0.as_deref() == Some(step) {
            tracing::error!(step, "ending here as told (DS4_OPERATOR_END_AFTER)");
            std::process::abort();
        }
    }
}
