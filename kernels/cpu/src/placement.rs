//! Which cores this process may use.

/// Threads that can run at once: by the affinity mask and the cgroup's CPU limit (v1 or v2), which the standard library both reads.
pub(crate) fn limit() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A core for each of `threads` threads, where they are all the cores that this process may use. Otherwise none: others run here too, or
/// a share of the time is what is limited, and threads must be free to move.
pub(crate) fn cores(threads: usize) -> Option<Vec<usize>> {
    Some(allowed()).filter(|cores| cores.len() == threads)
}

/// The affinity mask.
#[cfg(all(target_os = "linux", not(miri)))]
fn allowed() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let mask = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|core| mask.is_set(*core)).collect()
}

#[cfg(not(all(target_os = "linux", not(miri))))]
const fn allowed() -> Vec<usize> {
    Vec::new()
}

/// Keeps the calling thread on `core`; where that is refused it stays free to move, which costs locality and nothing else.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

#[cfg(not(all(target_os = "linux", not(miri))))]
pub(crate) const fn pin(_core: usize) {}
