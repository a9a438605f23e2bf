//! The machine that a measurement ran on: its name, and the processors it was kept on.

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processor numbers such as `0,2` or `0-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(pub Vec<usize>);

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected processors such as 0,2 or 0-3, found {text:?}");
        let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() {
            Err(wrong())
        } else {
            Ok(Self(cpus))
        }
    }
}

impl Cpus {
    /// The first `count` of the processors that this process may use.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn first(count: usize) -> Result<Self> {
        let mine = sched_getaffinity(None).context("asking which processors this process may use")?;
        let cpus: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| mine.is_set(*cpu))
            .take(count)
            .collect();
        ensure!(
            cpus.len() == count,
            "--threads {count}: this process may use {} processors; with fewer than threads nothing that is measured would mean much",
            cpus.len()
        );
        Ok(Self(cpus))
    }

    /// Keeps this process, and all that it starts from now on, on these processors.
    ///
    /// # Errors
    /// When one of them does not exist or is not allowed.
    pub fn pin(&self) -> Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu));
        sched_setaffinity(None, &set).with_context(|| format!("pinning to processors {:?}", self.0))
    }

    /// Does `work` on these processors; what it starts stays there, this thread goes back to where it was.
    ///
    /// # Errors
    /// When one of them does not exist or is not allowed, or `work` fails.
    pub fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = sched_getaffinity(None).context("asking which processors this process may use")?;
        self.pin()?;
        let result = work();
        sched_setaffinity(None, &before).context("going back to all processors")?;
        result
    }

    /// The mask in hexadecimal, as llama.cpp's `--cpu-mask` takes it.
    #[must_use]
    pub fn mask(&self) -> String {
        let mut digits = vec![0_u32; self.0.iter().max().map_or(1, |most| most / 4 + 1)];
        self.0.iter().for_each(|cpu| digits[cpu / 4] |= 1 << (cpu % 4));
        let digits: String = digits.iter().rev().map(|digit| format!("{digit:x}")).collect();
        format!("0x{digits}")
    }
}

/// The processor's name, from `/proc/cpuinfo`.
#[must_use]
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let numbers = field("cpu family")
        .zip(field("model\t"))
        .map(|(family, model)| format!(" (family {family}, model {model})"));
    field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()) + &numbers.unwrap_or_default()
}

/// Processes that wanted to run in the last minute, on average: above the processors in use, times mean little.
#[must_use]
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg")
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_of_processors_are_read_and_masked() {
        let cpus: Cpus = "0-2,5".parse().expect("a list");
        assert_eq!(cpus.0, [0, 1, 2, 5]);
        assert_eq!(cpus.mask(), "0x27");
        assert_eq!(Cpus(vec![1, 64]).mask(), "0x10000000000000002");
        assert!(
            "".parse::<Cpus>().is_err() && "2-1".parse::<Cpus>().is_err() && "x".parse::<Cpus>().is_err()
        );
    }
}
