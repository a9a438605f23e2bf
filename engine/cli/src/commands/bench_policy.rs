//! `ds4 bench policy`: a trace of turns through the policy that chooses between computing here and over the route, and what hindsight would
//! have chosen.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ds4_runtime::{Adaptive, Demand, Way};

use crate::args::BenchPolicyArguments;

/// One turn: what it asked for, and what either way would have taken.
#[derive(Clone, Copy, Debug)]
struct Turn {
    demand: Demand,
    /// Seconds.
    local: f64,
    /// Seconds.
    route: f64,
}

/// What the policy's choices took beside others'.
#[derive(Clone, Debug, Default)]
struct Report {
    turns: usize,
    over_route: usize,
    /// Seconds of the ways chosen.
    policy: f64,
    /// Of the better way of each turn: nobody can do better.
    hindsight: f64,
    /// Of the better one of the two fixed policies: nobody who has to choose once can do better.
    best_fixed: f64,
    always: f64,
    never: f64,
    /// How much more than hindsight took, as a share of that.
    regret: f64,
    changes: usize,
}

pub(crate) fn run(arguments: &BenchPolicyArguments) -> Result<()> {
    let turns = match &arguments.trace {
        Some(path) => read(path)?,
        None => example(arguments.seed),
    };
    ensure!(
        !turns.is_empty(),
        "the trace: expected at least one turn, found none"
    );
    let report = replay(&turns, arguments.min_prompt_tokens);
    if arguments.json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    Ok(())
}

impl Report {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "turns": self.turns, "over_route": self.over_route, "changes": self.changes, "policy_seconds": self.policy,
            "hindsight_seconds": self.hindsight, "always_seconds": self.always, "never_seconds": self.never,
            "regret": self.regret,
        })
    }
}

/// Only the way that was chosen is measured, as in service.
fn replay(turns: &[Turn], least: u64) -> Report {
    let mut policy = Adaptive::new(least);
    let mut report = Report::default();
    let mut last = None;
    for Turn { demand, local, route } in turns.iter().copied() {
        let way = policy.choose(demand).way;
        let took = if way == Way::Local { local } else { route };
        policy.measured(way, demand, took);
        report.turns += 1;
        report.over_route += usize::from(way == Way::Route);
        report.changes += usize::from(last.is_some_and(|last| last != way));
        report.policy += took;
        report.hindsight += local.min(route);
        report.never += local;
        report.always += route;
        last = Some(way);
    }
    report.best_fixed = report.always.min(report.never);
    report.regret = report.policy / report.hindsight - 1.0;
    report
}

/// Lines of `tokens,replay,local_seconds,route_seconds`; the first may name them.
fn read(path: &Path) -> Result<Vec<Turn>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut turns = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() || (i == 0 && line.starts_with("tokens")) {
            continue;
        }
        let turn = turn(line);
        turns.push(turn.with_context(|| format!("{}: line {}: {line}", path.display(), i + 1))?);
    }
    Ok(turns)
}

fn turn(line: &str) -> Result<Turn> {
    let fields: Vec<_> = line.split(',').map(str::trim).collect();
    let [tokens, replay, local, route] = fields[..] else {
        bail!(
            "expected tokens,replay,local_seconds,route_seconds, found {} fields",
            fields.len()
        )
    };
    let (local, route) = (local.parse::<f64>()?, route.parse::<f64>()?);
    ensure!(
        local > 0.0 && route > 0.0 && local.is_finite() && route.is_finite(),
        "expected seconds above 0, found {local} and {route}"
    );
    let demand = Demand {
        tokens: tokens.parse()?,
        replay: replay.parse()?,
    };
    Ok(Turn { demand, local, route })
}

/// Conversations of long prompts and short follow-ups. Two cores' rates: 400 tokens a second here, 700 over the route after 0.4 s; in the second
/// third of the trace the route has a fifth of its rate, as on a link that somebody else fills.
#[allow(clippy::cast_precision_loss)] // token counts
fn example(seed: u64) -> Vec<Turn> {
    let mut state = seed;
    let mut below = |most: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    let (mut turns, mut behind) = (Vec::new(), 0);
    for i in 0..600 {
        let tokens = if below(4) == 0 {
            2000 + below(14_000)
        } else {
            20 + below(1500)
        };
        // The stages also compute what was decoded here since.
        let replay = tokens + behind;
        behind = below(400);
        let noise = |random: u64| 0.95 + random as f64 / 1000.0;
        let rate = if (200..400).contains(&i) { 140.0 } else { 700.0 };
        turns.push(Turn {
            demand: Demand { tokens, replay },
            local: tokens as f64 / 400.0 * noise(below(100)),
            route: (0.4 + replay as f64 / rate) * noise(below(100)),
        });
    }
    turns
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            turns,
            over_route,
            policy,
            hindsight,
            best_fixed,
            always,
            never,
            regret,
            changes,
        } = self;
        writeln!(
            f,
            "{turns} turns, {over_route} over the route, {changes} changes of way"
        )?;
        writeln!(f, "hindsight  {hindsight:10.1} s")?;
        writeln!(f, "policy     {policy:10.1} s   {:+.1} % regret", regret * 100.0)?;
        writeln!(f, "always     {always:10.1} s")?;
        writeln!(f, "never      {never:10.1} s")?;
        write!(
            f,
            "the policy takes {:.2} of the better fixed one",
            policy / best_fixed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_example_the_policy_is_near_hindsight_and_better_than_either_fixed_one() {
        for seed in 0..20 {
            let report = replay(&example(seed), 512);
            // A third of the trace is spent where what was learned before misleads.
            assert!(report.regret < 0.25, "seed {seed}: {report}");
            assert!(report.policy < report.best_fixed, "seed {seed}: {report}");
        }
    }

    #[test]
    fn a_trace_is_read_and_a_wrong_line_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("trace.csv");
        std::fs::write(
            &path,
            "tokens,replay,local,route\n600,700,1.5,1.2\n\n10, 10, 0.1, 0.5\n",
        )?;
        let turns = read(&path)?;
        assert_eq!((turns.len(), turns[0].demand.replay), (2, 700));
        let report = replay(&turns, 512);
        assert_eq!((report.over_route, report.policy), (1, 1.3));
        assert!(report.regret.abs() < 1e-9);
        std::fs::write(&path, "1,2,3\n")?;
        let error = format!("{:#}", read(&path).expect_err("a field is missing"));
        assert!(
            error.contains("line 1") && error.contains("found 3 fields"),
            "{error}"
        );
        Ok(())
    }
}
