//! Linux: `/proc`.

use anyhow::{Context, Result};

use super::Memory;

/// Start of a process in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)). A dead one that nobody waited for is gone.
pub(super) fn start(pid: i32) -> Option<String> {
    stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command's name may hold blanks and parentheses: cut after the last.
fn stat(text: &str) -> Option<String> {
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next().filter(|state| !matches!(*state, "Z" | "X"));
    state.and_then(|_| fields.nth(18)).map(str::to_owned)
}

/// Memory that is backed by no file: what mapped weights take can be read again.
pub(super) fn anonymous(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kibibytes(&text, "RssAnon:")
}

pub(super) fn memory() -> Result<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let read = |name: &str| kibibytes(&text, name).with_context(|| format!("/proc/meminfo has no {name}"));
    Ok(Memory {
        total: read("MemTotal:")?,
        available: read("MemAvailable:")?,
    })
}

pub(super) fn system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_a_name_with_parentheses_and_zombies_are_gone() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let line = |state: &str| format!("7 (a) b) {state} {}", fields[1..].join(" "));
        assert_eq!(stat(&line("S")).as_deref(), Some("22"));
        assert_eq!(stat(&line("Z")), None);
    }

    #[test]
    fn sizes_are_in_kibibytes() {
        assert_eq!(
            kibibytes("VmRSS:\t 8 kB\nRssAnon:\t   4 kB\n", "RssAnon:"),
            Some(4096)
        );
    }
}
