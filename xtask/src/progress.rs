//! What a person sees while a command works: one line when a step starts, one when it ends.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Runs one step and says how long it took.
///
/// # Errors
/// The step's own.
pub fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("  … {title}");
    let start = Instant::now();
    let outcome = work();
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(_) => eprintln!("  ✓ {title} ({seconds:.1} s)"),
        Err(_) => eprintln!("  ✗ {title} ({seconds:.1} s)"),
    }
    outcome
}

/// What a probe found.
pub enum Probe<T> {
    /// It is there.
    Ready(T),
    /// Not yet; the text says what is missing and is shown when it changes.
    Waiting(String),
}

/// Asks `probe` until it is ready, showing what is missing whenever that changes.
///
/// # Errors
/// The probe's own; or, after `limit`, what was missing last.
pub fn wait<T>(title: &str, limit: Duration, mut probe: impl FnMut() -> Result<Probe<T>>) -> Result<T> {
    step(title, || {
        let start = Instant::now();
        let mut shown = String::new();
        loop {
            let missing = match probe()? {
                Probe::Ready(found) => return Ok(found),
                Probe::Waiting(missing) => missing,
            };
            if start.elapsed() > limit {
                bail!("{title}: not after {} s: {missing}", limit.as_secs());
            }
            if missing != shown {
                if !missing.is_empty() {
                    eprintln!("      {missing}");
                }
                shown = missing;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    })
}
