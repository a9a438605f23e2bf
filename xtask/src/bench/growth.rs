//! What a further token costs as the session grows: one long session, its chunks timed, decoding on the way.

use anyhow::{Context, Result, ensure};

use super::ds4::{Chunk, Measured};
use super::plot::{Chart, Curve, svg};
use super::report::Check;

/// Chunks around a depth whose median is the cost there, so that one interrupted chunk does not decide.
const AROUND: usize = 5;

/// Cost per token against depth, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// `(depth, milliseconds per token)` of each prefill chunk.
    pub prefill: Vec<(f64, f64)>,
    /// The same for decode, at each depth that was asked for.
    pub decode: Vec<(f64, f64)>,
}

#[allow(clippy::cast_precision_loss)] // depths of a session
impl Growth {
    /// From the rows of one long session.
    ///
    /// # Errors
    /// When it decoded nowhere.
    pub fn of(measured: &Measured) -> Result<Self> {
        let rows = |test: &'static str| measured.results.iter().filter(move |row| row.test == test);
        let cost = |chunk: &Chunk| {
            let depth = (chunk.depth + chunk.tokens) as f64;
            (depth, 1e3 * chunk.seconds / chunk.tokens as f64)
        };
        let prefill: Vec<_> = rows("fill").flat_map(|row| row.chunks.iter().map(cost)).collect();
        let decode: Vec<_> = rows("decode")
            .map(|row| (row.depth as f64, 1e3 / row.tokens_per_second))
            .collect();
        ensure!(
            !prefill.is_empty() && !decode.is_empty(),
            "ds4 bench printed no long session"
        );
        Ok(Self { prefill, decode })
    }

    /// Whether a token behind the last depth costs little more than one behind the first.
    ///
    /// # Errors
    /// When a curve is empty.
    pub fn checks(&self, prefill_limit: f64, decode_limit: f64) -> Result<Vec<Check>> {
        let (first, last) = self.decode.first().zip(self.decode.last()).context("no depths")?;
        let (shallow, deep) = (first.0, last.0);
        let check = |what: &str, found: f64, limit: f64| Check {
            name: format!("{what} per token at {deep:.0} over that at {shallow:.0}"),
            found,
            limit,
            at_least: false,
        };
        let near = |depth: f64| near(&self.prefill, depth).context("no chunks");
        let whole = mean_to(&self.prefill, deep) / mean_to(&self.prefill, shallow);
        Ok(vec![
            check(
                "prefill time of a further token",
                near(deep)? / near(shallow)?,
                prefill_limit,
            ),
            check("prefill time of the whole prompt", whole, prefill_limit),
            check("decode time", last.1 / first.1, decode_limit),
        ])
    }

    /// Both curves, with the peer's decode where it was measured.
    #[must_use]
    pub fn svg(&self, peer: &str, peer_decode: Vec<(f64, f64)>) -> String {
        let ours = |points: &[(f64, f64)]| Curve {
            name: "ds4".into(),
            points: points.to_vec(),
        };
        let mut decode = vec![ours(&self.decode)];
        if !peer_decode.is_empty() {
            decode.push(Curve {
                name: peer.into(),
                points: peer_decode,
            });
        }
        let chart = |title: &str, curves| Chart {
            title: title.into(),
            x: "tokens in the session".into(),
            curves,
        };
        svg(&[
            chart("prefill: ms per further token", vec![ours(&self.prefill)]),
            chart("decode: ms per token", decode),
        ])
    }
}

/// The median cost of the chunks nearest to a depth.
fn near(points: &[(f64, f64)], depth: f64) -> Option<f64> {
    let mut by_distance = points.to_vec();
    by_distance.sort_by(|(a, _), (b, _)| (a - depth).abs().total_cmp(&(b - depth).abs()));
    let mut costs: Vec<_> = by_distance
        .into_iter()
        .take(AROUND)
        .map(|(_, cost)| cost)
        .collect();
    costs.sort_by(f64::total_cmp);
    costs.get(costs.len() / 2).copied()
}

/// The mean cost of all tokens up to a depth.
fn mean_to(points: &[(f64, f64)], depth: f64) -> f64 {
    let (mut before, mut total) = (0.0, 0.0);
    for (end, cost) in points.iter().take_while(|(end, _)| *end <= depth) {
        total += (end - before) * cost;
        before = *end;
    }
    total / before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_compares_the_last_depth_with_the_first() -> Result<()> {
        let prefill = (1..=64)
            .map(|i| (f64::from(i) * 512.0, 1.0 + f64::from(i) / 64.0))
            .collect();
        let growth = Growth {
            prefill,
            decode: vec![(2048.0, 10.0), (32768.0, 14.0)],
        };
        let checks = growth.checks(1.6, 1.3)?;
        assert!(
            (checks[0].found - (1.0 + 62.0 / 64.0) / (1.0 + 4.0 / 64.0)).abs() < 1e-9,
            "{checks:?}"
        );
        assert!(
            (checks[1].found - (1.0 + 32.5 / 64.0) / (1.0 + 2.5 / 64.0)).abs() < 1e-9,
            "{checks:?}"
        );
        assert!((checks[2].found - 1.4).abs() < 1e-9 && !checks[2].holds());
        Ok(())
    }
}
