//! A measured program: what it printed, how long it ran and how much memory it had.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often the high-water mark of memory is read; it only ever rises, so what is missed is the very end.
const LOOK: Duration = Duration::from_millis(20);

/// A program that has ended well.
pub struct Finished {
    /// What it printed on standard output.
    pub stdout: String,
    /// From its start to its end.
    pub took: Duration,
    /// `VmHWM`: the most memory it had resident, mapped files included. 0 where `/proc` does not tell.
    pub peak_bytes: u64,
}

/// Runs `command` to its end.
///
/// # Errors
/// When it does not start or fails: with what it said.
pub fn run(command: &mut Command) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let (pid, ended) = (child.id(), AtomicBool::new(false));
    let (output, peak_bytes) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(pid, &ended));
        let output = child.wait_with_output();
        ended.store(true, Ordering::Relaxed);
        (output, watch.join().unwrap_or(0))
    });
    let output = output.with_context(|| format!("waiting for {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let end: Vec<_> = said.lines().rev().take(15).collect();
        let end: Vec<_> = end.into_iter().rev().collect();
        bail!("{name} ended with {}:\n{}", output.status, end.join("\n"));
    }
    Ok(Finished {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        took: start.elapsed(),
        peak_bytes,
    })
}

fn watch(pid: u32, ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !ended.load(Ordering::Relaxed) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        peak = peak.max(high_water(&status).unwrap_or(0));
        std::thread::sleep(LOOK);
    }
    peak
}

/// `VmHWM` of a `/proc/PID/status`, in bytes.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_measured_and_a_failing_one_is_named_with_what_it_said() -> Result<()> {
        let done = run(Command::new("sh").args(["-c", "sleep 0.1; echo done"]))?;
        assert_eq!(done.stdout, "done\n");
        assert!(done.took >= Duration::from_millis(100));
        assert!(done.peak_bytes > 0 || cfg!(not(target_os = "linux")));
        let failed = run(Command::new("sh").args(["-c", "echo broken >&2; exit 4"]));
        assert!(failed.is_err_and(|error| error.to_string().contains("broken")));
        Ok(())
    }

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(
            high_water("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(high_water("Name:\tx\n"), None);
    }
}
