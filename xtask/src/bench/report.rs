//! What a benchmark found: figures with their samples, ratios, bounds and goals, as Markdown and as JSON.

use std::fmt::Write;

use serde::{Serialize, Serializer};

/// What a figure counts, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// More is better.
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    /// Less is better.
    #[serde(rename = "s")]
    Seconds,
    /// Less is better.
    #[serde(rename = "bytes")]
    Bytes,
}

impl Unit {
    const fn more_is_better(self) -> bool {
        matches!(self, Self::TokensPerSecond)
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::TokensPerSecond => format!("{value:.1} t/s"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{:.2} GiB", value / f64::from(1 << 30)),
        }
    }
}

/// Measurements of one thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The one in the middle, or between the two in the middle; `None` without any.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            count if count.is_multiple_of(2) => Some((sorted[half - 1] + sorted[half]) / 2.0),
            _ => Some(sorted[half]),
        }
    }

    /// The distance of the extremes, as a share of the median.
    fn spread(&self) -> Option<f64> {
        let extreme = |pick: fn(f64, f64) -> f64| self.0.iter().copied().reduce(pick);
        Some((extreme(f64::max)? - extreme(f64::min)?) / self.median()?)
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            median: Option<f64>,
            samples: &'a [f64],
        }
        let (median, samples) = (self.median(), self.0.as_slice());
        Written { median, samples }.serialize(serializer)
    }
}

/// What the machine allows at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// In the figure's unit.
    pub value: f64,
    /// What bounds: `memory bandwidth`.
    pub by: &'static str,
}

/// One figure, ours and the peer's.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// `prefill 512`.
    pub name: String,
    /// Of all its numbers.
    pub unit: Unit,
    /// Ours.
    pub ours: Samples,
    /// The peer's, from the same rounds; empty without a peer.
    pub theirs: Samples,
    /// How many times better than the peer it should be.
    pub goal: Option<f64>,
    /// The machine's limit.
    pub bound: Option<Bound>,
}

impl Figure {
    /// Without samples.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            unit,
            ours: Samples::default(),
            theirs: Samples::default(),
            goal: None,
            bound: None,
        }
    }

    /// How many times better than the peer ours is.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (ours, theirs) = (self.ours.median()?, self.theirs.median()?);
        Some(if self.unit.more_is_better() {
            ours / theirs
        } else {
            theirs / ours
        })
    }

    /// The newest samples, for whoever watches.
    #[must_use]
    pub fn last(&self) -> String {
        let shown = |samples: &Samples| {
            samples
                .0
                .last()
                .map_or("-".into(), |value| self.unit.show(*value))
        };
        format!(
            "{}: {}, peer {}",
            self.name,
            shown(&self.ours),
            shown(&self.theirs)
        )
    }

    fn row(&self) -> String {
        let shown = |samples: &Samples| {
            samples
                .median()
                .map_or("-".into(), |median| self.unit.show(median))
        };
        let spread = self
            .ours
            .spread()
            .into_iter()
            .chain(self.theirs.spread())
            .reduce(f64::max);
        let bound = self.bound.as_ref().zip(self.ours.median()).map(|(bound, ours)| {
            format!(
                "{:.0} % of {} ({})",
                100.0 * ours / bound.value,
                self.unit.show(bound.value),
                bound.by
            )
        });
        let cells = [
            self.name.clone(),
            shown(&self.ours),
            shown(&self.theirs),
            self.ratio()
                .map_or("-".into(), |ratio| format!("**{ratio:.2}x**")),
            self.goal.map_or("-".into(), |goal| {
                format!("{goal}x{}", mark(self.ratio().is_some_and(|ratio| ratio >= goal)))
            }),
            spread.map_or("-".into(), |spread| format!("{:.0} %", 100.0 * spread)),
            bound.unwrap_or_else(|| "-".into()),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

/// Something that must not exceed, or must reach, a limit.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is looked at.
    pub name: String,
    /// What was found.
    pub found: f64,
    /// The limit.
    pub limit: f64,
    /// Whether the limit is to be reached rather than not to be exceeded.
    pub at_least: bool,
}

impl Check {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.at_least {
            self.found >= self.limit
        } else {
            self.found <= self.limit
        }
    }

    fn row(&self) -> String {
        let sign = if self.at_least { "≥" } else { "≤" };
        format!(
            "| {} | {:.2} | {sign} {:.2}{} |",
            self.name,
            self.found,
            self.limit,
            mark(self.holds())
        )
    }
}

const fn mark(holds: bool) -> &'static str {
    if holds { " ✓" } else { " ✗" }
}

/// A whole benchmark.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Its heading.
    pub title: String,
    /// The other program of the figures, when there is one.
    pub peer: Option<String>,
    /// Under which circumstances: machine, threads, model, rounds.
    pub setting: Vec<(String, String)>,
    /// The figures.
    pub figures: Vec<Figure>,
    /// What must hold besides the figures' goals.
    pub checks: Vec<Check>,
    /// Sentences that the numbers need.
    pub notes: Vec<String>,
}

impl Report {
    /// As Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.title);
        for (name, value) in &self.setting {
            line(&mut text, format_args!("- {name}: {value}"));
        }
        if !self.figures.is_empty() {
            let peer = self.peer.as_deref().unwrap_or("peer");
            line(
                &mut text,
                format_args!(
                    "\n| median | ds4 | {peer} | times better | goal | spread | of the machine's limit |\n|---|--:|--:|--:|--:|--:|---|"
                ),
            );
            self.figures
                .iter()
                .for_each(|figure| line(&mut text, format_args!("{}", figure.row())));
        }
        if !self.checks.is_empty() {
            line(
                &mut text,
                format_args!("\n| check | found | limit |\n|---|--:|--:|"),
            );
            self.checks
                .iter()
                .for_each(|check| line(&mut text, format_args!("{}", check.row())));
        }
        for note in &self.notes {
            line(&mut text, format_args!("\n{note}"));
        }
        text
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(unit: Unit, ours: &[f64], theirs: &[f64]) -> Figure {
        Figure {
            ours: Samples(ours.to_vec()),
            theirs: Samples(theirs.to_vec()),
            ..Figure::new("it", unit)
        }
    }

    #[test]
    fn a_ratio_is_of_medians_and_above_one_where_ours_is_better() {
        assert_eq!(
            figure(Unit::TokensPerSecond, &[900.0, 30.0, 20.0], &[10.0, 10.0, 1.0]).ratio(),
            Some(3.0)
        );
        assert_eq!(figure(Unit::Seconds, &[1.0, 3.0], &[4.0]).ratio(), Some(2.0));
        assert_eq!(figure(Unit::Bytes, &[], &[4.0]).ratio(), None);
    }

    #[test]
    fn goals_and_limits_are_marked_as_missed_when_they_are() {
        let mut slow = figure(Unit::TokensPerSecond, &[10.0], &[10.0]);
        slow.goal = Some(3.0);
        slow.bound = Some(Bound {
            value: 40.0,
            by: "memory bandwidth",
        });
        let report = Report {
            figures: vec![slow],
            checks: vec![
                Check {
                    name: "growth".into(),
                    found: 1.2,
                    limit: 1.3,
                    at_least: false,
                },
                Check {
                    name: "share".into(),
                    found: 0.2,
                    limit: 0.7,
                    at_least: true,
                },
            ],
            ..Report::default()
        };
        let text = report.markdown();
        assert!(
            text.contains(
                "| it | 10.0 t/s | 10.0 t/s | **1.00x** | 3x ✗ | 0 % | 25 % of 40.0 t/s (memory bandwidth) |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| growth | 1.20 | ≤ 1.30 ✓ |") && text.contains("| share | 0.20 | ≥ 0.70 ✗ |"),
            "{text}"
        );
    }
}
