//! From samples to percentiles.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::Sample;
use crate::args::BenchServeArguments;

/// Which percentiles are told.
const PERCENTILES: [f64; 5] = [50.0, 75.0, 90.0, 95.0, 99.0];

/// Times in milliseconds, in ascending order.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<f64>);

impl Times {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The smallest time that this share of all does not exceed.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an index into the list
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    fn json(&self) -> Value {
        let told = |value: f64| {
            if value.is_finite() {
                json!(value)
            } else {
                Value::Null
            }
        };
        let mut members: BTreeMap<String, Value> = PERCENTILES
            .iter()
            .map(|p| (format!("p{p}"), told(self.percentile(*p))))
            .collect();
        members.insert("mean".into(), told(self.mean()));
        members.insert("max".into(), told(self.percentile(100.0)));
        json!(members)
    }
}

/// What a run has shown.
#[derive(Debug)]
pub(super) struct Report {
    /// Name and times of each measure.
    pub(super) measures: [(&'static str, &'static str, Times); 3],
    seconds: f64,
    requests: usize,
    pub(super) failed: usize,
    pub(super) first_error: String,
    prompt: u64,
    cached: u64,
    completion: u64,
    /// Requests that kept to the limits.
    good: usize,
    limits: String,
    decisions: BTreeMap<String, usize>,
}

impl Report {
    pub(super) fn new(samples: &[Sample], arguments: &BenchServeArguments) -> Self {
        let whole: Vec<&Sample> = samples.iter().filter(|sample| sample.error.is_none()).collect();
        let seconds = samples
            .iter()
            .map(|sample| (sample.began + sample.total).as_secs_f64())
            .fold(0.0, f64::max);
        let sum = |count: fn(&Sample) -> u64| whole.iter().map(|sample| count(sample)).sum();
        let mut decisions = BTreeMap::new();
        whole
            .iter()
            .for_each(|sample| *decisions.entry(sample.decision.clone()).or_default() += 1);
        Self {
            measures: [
                (
                    "ttft",
                    "Time to first token",
                    Times::new(whole.iter().map(|sample| sample.first)),
                ),
                (
                    "itl",
                    "Between tokens",
                    Times::new(whole.iter().flat_map(|sample| sample.gaps.iter().copied())),
                ),
                (
                    "e2e",
                    "Whole answer",
                    Times::new(whole.iter().map(|sample| sample.total)),
                ),
            ],
            seconds,
            requests: samples.len(),
            failed: samples.len() - whole.len(),
            first_error: samples
                .iter()
                .find_map(|sample| sample.error.clone())
                .unwrap_or_default(),
            prompt: sum(|sample| sample.prompt),
            cached: sum(|sample| sample.cached),
            completion: sum(|sample| sample.completion),
            good: whole.iter().filter(|sample| good(sample, arguments)).count(),
            limits: limits(arguments),
            decisions,
        }
    }

    pub(super) fn json(&self) -> Value {
        let measures: BTreeMap<&str, Value> = self
            .measures
            .iter()
            .map(|(name, _, times)| (*name, times.json()))
            .collect();
        json!({
            "requests": self.requests, "failed": self.failed, "seconds": self.seconds, "milliseconds": measures,
            "prompt_tokens": self.prompt, "cached_tokens": self.cached, "completion_tokens": self.completion,
            "requests_per_second": self.rate(self.requests - self.failed), "completion_tokens_per_second": self.completion as f64 / self.seconds,
            "goodput_per_second": self.rate(self.good), "good": self.good, "limits": self.limits, "decisions": self.decisions,
        })
    }

    fn rate(&self, count: usize) -> f64 {
        count as f64 / self.seconds
    }
}

/// A request is good when it keeps to every limit; its mean gap counts for the second.
fn good(sample: &Sample, arguments: &BenchServeArguments) -> bool {
    let within = |time: Duration, limit: Option<Duration>| limit.is_none_or(|limit| time <= limit);
    let gaps = u32::try_from(sample.gaps.len()).unwrap_or(u32::MAX).max(1);
    within(sample.first, arguments.slo_ttft)
        && within(sample.gaps.iter().sum::<Duration>() / gaps, arguments.slo_itl)
        && within(sample.total, arguments.slo_e2e)
}

fn limits(arguments: &BenchServeArguments) -> String {
    let limits = [
        ("ttft", arguments.slo_ttft),
        ("itl", arguments.slo_itl),
        ("e2e", arguments.slo_e2e),
    ];
    let told = limits
        .iter()
        .filter_map(|(name, limit)| limit.map(|limit| format!("{name} <= {limit:?}")));
    told.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seconds,
            requests,
            failed,
            ..
        } = self;
        writeln!(f, "{requests} requests in {seconds:.2} s, {failed} failed")?;
        writeln!(
            f,
            "{} prompt tokens ({} cached), {} generated",
            self.prompt, self.cached, self.completion
        )?;
        let rate = self.rate(requests - failed);
        writeln!(
            f,
            "{rate:.2} requests/s, {:.1} generated tokens/s",
            self.completion as f64 / seconds
        )?;
        if !self.limits.is_empty() {
            writeln!(
                f,
                "goodput {:.2} requests/s ({} within {})",
                self.rate(self.good),
                self.good,
                self.limits
            )?;
        }
        for (decision, count) in &self.decisions {
            writeln!(f, "{count} x {decision}")?;
        }
        write!(f, "\n{:22}{:>10}", "milliseconds", "mean")?;
        PERCENTILES
            .iter()
            .try_for_each(|p| write!(f, "{:>10}", format!("p{p}")))?;
        for (_, name, times) in &self.measures {
            write!(f, "\n{name:22}{:>10.1}", times.mean())?;
            PERCENTILES
                .iter()
                .try_for_each(|p| write!(f, "{:>10.1}", times.percentile(*p)))?;
        }
        Ok(())
    }
}

/// One line for each request.
pub(super) fn csv(samples: &[Sample]) -> String {
    let mut text = String::from(
        "began_ms,ttft_ms,e2e_ms,mean_itl_ms,prompt_tokens,cached_tokens,completion_tokens,decision,error\n",
    );
    for sample in samples {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let gaps = Times::new(sample.gaps.iter().copied()).mean();
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let (began, first, total) = (
            milliseconds(sample.began),
            milliseconds(sample.first),
            milliseconds(sample.total),
        );
        text.push_str(&format!(
            "{began:.3},{first:.3},{total:.3},{gaps:.3},{},{},{},{},{}\n",
            sample.prompt,
            sample.cached,
            sample.completion,
            quoted(&sample.decision),
            quoted(sample.error.as_deref().unwrap_or_default()),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let times = Times::new((1..=10).rev().map(Duration::from_millis));
        assert_eq!(
            [
                times.percentile(50.0),
                times.percentile(95.0),
                times.percentile(100.0)
            ],
            [5.0, 10.0, 10.0]
        );
        assert!(times.mean() == 5.5 && Times::default().percentile(50.0).is_nan());
        assert_eq!(Times::default().json()["p50"], Value::Null);
    }
}
