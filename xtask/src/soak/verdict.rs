//! What a run has shown, and whether it may be so.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Soak;
use super::stream::Tally;
use crate::process::Started;

/// Most tokens of the best stream over those of the worst.
const FAIR: f64 = 1.3;
/// From so many seconds on a run is a long one: memory and fairness can be judged. In a short one a single answer more or less decides.
const LONG: u64 = 120;
/// Growth of memory over the second half of a long run, as a part of its mean: measurements and the allocator's noise are below it.
const FLAT: f64 = 0.05;

/// Resident memory of the output pod.
pub(super) struct Sample {
    seconds: f64,
    bytes: f64,
}

impl Sample {
    pub(super) fn take(began: Instant, process: Option<&Started>) -> Result<Self> {
        let process = process.context("the output pod")?;
        process.check()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(Self {
            seconds: began.elapsed().as_secs_f64(),
            bytes: kilobytes.context("VmRSS")? * 1024.0,
        })
    }
}

/// The line of least squares through samples: its slope in bytes per second, and their mean.
fn line(samples: &[Sample]) -> (f64, f64) {
    let count = samples.len().max(1) as f64;
    let mean = |value: fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(|sample| sample.seconds), mean(|sample| sample.bytes));
    let over = |f: &dyn Fn(&Sample) -> f64| samples.iter().map(f).sum::<f64>();
    let spread = over(&|sample| (sample.seconds - x).powi(2));
    let slope = over(&|sample| (sample.seconds - x) * (sample.bytes - y)) / spread.max(f64::MIN_POSITIVE);
    (slope, y)
}

/// What a run has shown.
pub(super) struct Verdict {
    streams: usize,
    seconds: u64,
    total: Tally,
    fewest: u64,
    most: u64,
    faults: Vec<String>,
    slope: f64,
    mean: f64,
}

impl Verdict {
    pub(super) fn new(soak: &Soak, tallies: &[Tally], faults: &[String], memory: &[Sample]) -> Self {
        let mut total = Tally::default();
        for tally in tallies {
            total.tokens += tally.tokens;
            total.whole += tally.whole;
            total.left += tally.left;
            total.cached += tally.cached;
            add(&mut total.decisions, &tally.decisions);
            add(&mut total.announced, &tally.announced);
            total.wrong.extend_from_slice(&tally.wrong);
        }
        let (slope, mean) = line(&memory[memory.len() / 2..]);
        Self {
            streams: soak.streams,
            seconds: soak.seconds,
            total,
            fewest: tallies.iter().map(|tally| tally.tokens).min().unwrap_or(0),
            most: tallies.iter().map(|tally| tally.tokens).max().unwrap_or(0),
            faults: faults.to_vec(),
            slope,
            mean,
        }
    }

    fn fairness(&self) -> f64 {
        self.most as f64 / self.fewest as f64
    }

    /// Growth over the second half, as a part of the mean.
    fn growth(&self) -> f64 {
        self.slope * self.seconds as f64 / 2.0 / self.mean
    }

    /// Whether it may be so.
    pub(super) fn check(&self) -> Result<()> {
        let (long, mut bad) = (self.seconds >= LONG, Vec::new());
        if !self.total.wrong.is_empty() {
            bad.push(format!(
                "{} wrong; the first: {}",
                self.total.wrong.len(),
                self.total.wrong[0]
            ));
        }
        if long && self.fairness() > FAIR {
            bad.push(format!(
                "fairness: expected at most {FAIR}, found {:.2}",
                self.fairness()
            ));
        }
        if self.fewest == 0 {
            bad.push("fairness: a stream has got nothing".into());
        }
        if long && self.growth() > FLAT {
            bad.push(format!(
                "memory: expected at most {FLAT} more, found {:.3}",
                self.growth()
            ));
        }
        for decision in ["disaggregated", "recomputed"] {
            if !self.total.decisions.contains_key(decision) {
                bad.push(format!(
                    "decisions: expected some {decision}, found none: the faults did nothing"
                ));
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        bail!("{}", bad.join("\n"))
    }
}

fn add(to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    from.iter()
        .for_each(|(key, count)| *to.entry(key.clone()).or_default() += count);
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, .. } = self;
        let pairs = |map: &BTreeMap<String, u64>| {
            let words: Vec<_> = map.iter().map(|(key, count)| format!("{count} {key}")).collect();
            if words.is_empty() {
                "none".into()
            } else {
                words.join(", ")
            }
        };
        writeln!(
            f,
            "{} streams, {} s, {} faults",
            self.streams,
            self.seconds,
            self.faults.len()
        )?;
        writeln!(
            f,
            "answers     {} whole ({}), {} left by their client",
            total.whole,
            pairs(&total.decisions),
            total.left
        )?;
        writeln!(
            f,
            "tokens      {} compared with one session alone, {} wrong",
            total.tokens,
            total.wrong.len()
        )?;
        writeln!(f, "cached      {} prompt tokens", total.cached)?;
        writeln!(f, "refused     {}", pairs(&total.announced))?;
        writeln!(
            f,
            "fairness    {:.3} ({} to {} tokens per stream)",
            self.fairness(),
            self.fewest,
            self.most
        )?;
        write!(
            f,
            "memory      {:.1} MiB, {:+.3} MiB a minute over the second half ({:+.2} %)",
            self.mean / 1_048_576.0,
            self.slope * 60.0 / 1_048_576.0,
            self.growth() * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_through_samples_has_their_slope() {
        let samples: Vec<_> = (0..10)
            .map(|i| Sample {
                seconds: f64::from(i),
                bytes: 100.0 + 3.0 * f64::from(i),
            })
            .collect();
        let (slope, mean) = line(&samples);
        assert!((slope - 3.0).abs() < 1e-9 && (mean - 113.5).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_token_an_unfair_share_and_a_run_without_faults_are_found() {
        let soak = Soak {
            seconds: 600,
            streams: 2,
            prompts: 1,
            seed: 1,
        };
        let memory: Vec<_> = (0..10)
            .map(|i| Sample {
                seconds: f64::from(i),
                bytes: 100.0,
            })
            .collect();
        let good = |tokens| Tally {
            tokens,
            decisions: BTreeMap::from([("disaggregated".into(), 1), ("recomputed".into(), 1)]),
            ..Tally::default()
        };
        let check = |tallies: &[Tally]| {
            Verdict::new(&soak, tallies, &[], &memory)
                .check()
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(&[good(100), good(120)]), Ok(()));
        assert!(check(&[good(100), good(140)]).is_err_and(|text| text.starts_with("fairness")));
        let wrong = Tally {
            wrong: vec!["x".into()],
            ..good(100)
        };
        assert!(check(&[wrong, good(100)]).is_err_and(|text| text.starts_with("1 wrong")));
        let calm = Tally {
            decisions: BTreeMap::from([("disaggregated".into(), 1)]),
            ..good(100)
        };
        assert!(check(&[calm.clone(), calm]).is_err_and(|text| text.contains("recomputed")));
        let growing: Vec<_> = (0..10)
            .map(|i| Sample {
                seconds: f64::from(i),
                bytes: 100.0 + f64::from(i),
            })
            .collect();
        let verdict = Verdict::new(&soak, &[good(100), good(100)], &[], &growing);
        assert!(
            verdict
                .check()
                .is_err_and(|error| error.to_string().starts_with("memory"))
        );
    }
}
