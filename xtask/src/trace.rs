//! The trace of a request, whole or not yet.

use anyhow::Result;
pub use ds4_trace::Trace;
use ds4_trace::newest;

use crate::progress::Probe;

/// A trace with its one root and the spans of all `stages`, or what is still missing.
///
/// # Errors
/// When a line is not what a collector writes.
pub fn whole(text: &str, stages: usize) -> Result<Probe<Trace>> {
    let Some(trace) = newest(text)? else {
        return Ok(Probe::Waiting(String::new()));
    };
    let (found, roots) = (trace.named("ds4.stage").count(), trace.roots().count());
    Ok(if found == stages && roots == 1 {
        Probe::Ready(trace)
    } else {
        Probe::Waiting(format!("{found} of {stages} stages, {roots} roots"))
    })
}
