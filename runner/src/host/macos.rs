//! macOS: the programs `ps`, `sysctl` and `vm_stat`, which every Mac has. (The calls behind them have no safe binding.)

use anyhow::{Context, Result};

use super::{Memory, line_of};

/// Start of a process, to the second; `ps` says nothing of one that is gone.
pub(super) fn start(pid: i32) -> Option<String> {
    parse_start(&line_of("ps", &["-o", "stat=,lstart=", "-p", &pid.to_string()]))
}

/// A dead one that nobody waited for is gone.
fn parse_start(line: &str) -> Option<String> {
    let (state, start) = line.trim().split_once(char::is_whitespace)?;
    let start = start.split_whitespace().collect::<Vec<_>>().join(" ");
    (!state.starts_with('Z') && !start.is_empty()).then_some(start)
}

/// Resident memory.
pub(super) fn resident(pid: i32) -> Option<u64> {
    let kibibytes: u64 = line_of("ps", &["-o", "rss=", "-p", &pid.to_string()])
        .parse()
        .ok()?;
    Some(kibibytes * 1024)
}

pub(super) fn memory() -> Result<Memory> {
    let total = line_of("sysctl", &["-n", "hw.memsize"])
        .parse()
        .context("sysctl hw.memsize")?;
    let available = available(&line_of("vm_stat", &[])).context("vm_stat")?;
    Ok(Memory { total, available })
}

/// Free pages and those that are given up without a write: inactive, speculative and purgeable ones.
fn available(text: &str) -> Option<u64> {
    let size: u64 = text
        .split_once("page size of ")?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    let pages = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches('.').parse().ok()
    };
    let kinds = [
        "Pages free:",
        "Pages inactive:",
        "Pages speculative:",
        "Pages purgeable:",
    ];
    let sum = kinds
        .into_iter()
        .map(pages)
        .try_fold(0, |sum, pages| Some(sum + pages?));
    sum.map(|pages| pages * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_what_vm_stat_can_give_up() {
        let text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                               10.\n\
                    Pages active:                            500.\nPages inactive:                           20.\nPages speculative:                         3.\n\
                    Pages throttled:                           0.\nPages wired down:                        100.\nPages purgeable:                           4.\n";
        assert_eq!(available(text), Some(37 * 16384));
        assert_eq!(available("nothing"), None);
    }

    #[test]
    fn a_start_is_read_from_ps_and_zombies_are_gone() {
        assert_eq!(
            parse_start("Ss   Thu Nov  6 12:00:01 2026    ").as_deref(),
            Some("Thu Nov 6 12:00:01 2026")
        );
        assert_eq!(parse_start("Z    Thu Nov  6 12:00:01 2026"), None);
        assert_eq!(parse_start(""), None);
    }
}
