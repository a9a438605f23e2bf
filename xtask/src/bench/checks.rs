//! What must hold besides the figures' goals: shares of the machine's limits, and gains.

use super::ds4::Measured;
use super::report::{Check, Figure};

/// Shares of the memory bandwidth, and what a batch gains, where they were measured.
pub fn of_figures(figures: &[Figure]) -> Vec<Check> {
    share(figures, "decode at 0", 0.7)
        .into_iter()
        .chain(batch_gain(figures))
        .collect()
}

fn share(figures: &[Figure], name: &str, limit: f64) -> Option<Check> {
    let figure = figures.iter().find(|figure| figure.name == name)?;
    let bound = figure.bound.as_ref()?;
    Some(Check {
        name: format!("{name}: share of {}", bound.by),
        found: figure.ours.median()? / bound.value,
        limit,
        at_least: true,
    })
}

/// The share of the vectors' int8 peak that the products of a chunk reach; what prefill does besides is in the figures' own shares.
pub fn matmuls(measured: &Measured) -> Option<Check> {
    Some(Check {
        name: "products of 512 tokens: share of int8 vector peak".into(),
        found: measured.matmul_share_of_int8_peak?,
        limit: 0.5,
        at_least: true,
    })
}

/// What the largest batch gains over one session.
fn batch_gain(figures: &[Figure]) -> Option<Check> {
    let mut batches = figures
        .iter()
        .filter(|figure| figure.name.starts_with("decode of "));
    let (one, most) = (batches.next()?, batches.next_back()?);
    let name = format!("{} over {}", most.name, one.name);
    Some(Check {
        name,
        found: most.ours.median()? / one.ours.median()?,
        limit: 3.0,
        at_least: true,
    })
}

/// Times faster than antirez/ds4 in prefill and in decode.
pub fn over_antirez([prefill, decode]: [f64; 2], tokens: usize) -> Vec<Check> {
    let check = |what: &str, found: f64, limit: f64| Check {
        name: format!("{what}, times faster than antirez/ds4"),
        found,
        limit,
        at_least: true,
    };
    vec![
        check(&format!("prefill {tokens}"), prefill, 25.0),
        check(&format!("decode at {tokens}"), decode, 5.0),
    ]
}

/// The peer's milliseconds per token at the depths that were measured, where an axis of powers of two can show them.
#[allow(clippy::cast_precision_loss)] // depths
pub fn peer_decode(figures: &[Figure], depths: &[usize]) -> Vec<(f64, f64)> {
    let point = |depth: &usize| {
        let name = format!("decode at {depth}");
        let figure = figures.iter().find(|figure| figure.name == name)?;
        Some((*depth as f64, 1e3 / figure.theirs.median()?))
    };
    depths
        .iter()
        .filter(|depth| **depth > 0)
        .filter_map(point)
        .collect()
}
