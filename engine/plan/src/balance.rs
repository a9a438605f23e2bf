//! The search: contiguous spans, one per machine, with the fastest slowest stage.

use crate::cost::{Pace, with_headroom};
use crate::{Machine, Parts, PlanError, Span};

/// Orders of up to this many machines are all tried: 720.
const MOST_ORDERED: usize = 6;

/// One machine's part of a proposal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Place of the machine in the list given.
    pub machine: usize,
    /// Layers that it computes during prefill.
    pub span: Span,
    /// Bytes that it has.
    pub memory: u64,
    /// Bytes that weights and KV take; on the last machine those of the whole model.
    pub needed: u64,
    /// Seconds per prompt token that the stage takes; in units of an unmeasured machine's whole model when a rate is missing.
    pub seconds: f64,
}

/// Proposes layers for machines in pipeline order, the last of which decodes.
///
/// # Errors
/// When a machine is too small or there are more machines than layers.
pub fn split(parts: &Parts, machines: &[Machine]) -> Result<Vec<Share>, PlanError> {
    let layers = parts.layers.len();
    let Some((last, stages)) = machines.split_last().filter(|_| machines.len() <= layers) else {
        return Err(PlanError::Machines {
            layers,
            found: machines.len(),
        });
    };
    let whole = parts.resident(parts.full());
    if whole > last.usable() {
        return Err(too_small_to_decode(machines, whole));
    }
    let pace = Pace::new(parts, machines);
    let fits = |machine: usize, span: Span| span.head || parts.resident(span) <= machines[machine].usable();
    let seconds = |machine: usize, span: Span| pace.seconds(&machines[machine], span);
    let spans = balance(layers, machines.len(), fits, seconds).ok_or_else(|| no_room(parts, stages))?;
    let share = |(machine, span): (usize, Span)| Share {
        machine,
        span,
        memory: machines[machine].memory,
        needed: if span.head { whole } else { parts.resident(span) },
        seconds: seconds(machine, span),
    };
    Ok(spans.into_iter().enumerate().map(share).collect())
}

/// As [`split`], for machines in any order: the best order is part of the proposal. Beyond six machines the largest decodes and the others
/// keep their order.
///
/// # Errors
/// When no order works: the error of the one whose last machine is the largest.
pub fn arrange(parts: &Parts, machines: &[Machine]) -> Result<Vec<Share>, PlanError> {
    let largest = largest_last(machines);
    let mut best = in_order(parts, machines, &largest);
    if machines.len() <= MOST_ORDERED {
        let mut order: Vec<usize> = (0..machines.len()).collect();
        permutations(&mut order, 0, &mut |order| {
            let next = in_order(parts, machines, order);
            if slowest(&next) < slowest(&best) {
                best = next;
            }
        });
    }
    best
}

fn in_order(parts: &Parts, machines: &[Machine], order: &[usize]) -> Result<Vec<Share>, PlanError> {
    let ordered: Vec<Machine> = order.iter().map(|i| machines[*i]).collect();
    let mut shares = split(parts, &ordered)?;
    for share in &mut shares {
        share.machine = order[share.machine];
    }
    Ok(shares)
}

fn slowest(shares: &Result<Vec<Share>, PlanError>) -> f64 {
    shares.as_ref().map_or(f64::INFINITY, |shares| {
        shares.iter().map(|share| share.seconds).fold(0.0, f64::max)
    })
}

fn largest_last(machines: &[Machine]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..machines.len()).collect();
    if let Some(largest) = (0..machines.len()).max_by_key(|i| machines[*i].memory) {
        order.retain(|i| *i != largest);
        order.push(largest);
    }
    order
}

fn permutations(order: &mut [usize], from: usize, visit: &mut dyn FnMut(&[usize])) {
    if from == order.len() {
        return visit(order);
    }
    for i in from..order.len() {
        order.swap(from, i);
        permutations(order, from + 1, visit);
        order.swap(from, i);
    }
}

fn too_small_to_decode(machines: &[Machine], whole: u64) -> PlanError {
    let other = machines.iter().position(|machine| machine.usable() >= whole);
    PlanError::Output {
        at: machines.len(),
        expected: with_headroom(whole),
        found: machines.last().map_or(0, |machine| machine.memory),
        hint: other.map_or_else(String::new, |i| {
            format!("; machine {} is large enough: name it last", i + 1)
        }),
    }
}

fn no_room(parts: &Parts, stages: &[Machine]) -> PlanError {
    let one = |layer| Span {
        first: layer,
        last: layer,
        head: false,
    };
    let needed = (0..parts.layers.len()).map(|layer| parts.resident(one(layer)));
    PlanError::Stages {
        machines: stages.len(),
        expected: with_headroom(needed.min().unwrap_or(0)),
        found: stages.iter().map(|machine| machine.memory).min().unwrap_or(0),
    }
}

/// The slowest stage so far, and where the last machine's layers start.
#[derive(Clone, Copy)]
struct Best {
    slowest: f64,
    first: usize,
}

/// Contiguous spans, one per machine, with the fastest slowest stage; the last takes the head.
fn balance(
    layers: usize,
    machines: usize,
    fits: impl Fn(usize, Span) -> bool,
    seconds: impl Fn(usize, Span) -> f64,
) -> Option<Vec<Span>> {
    // best[machine][end]: the machines up to this one compute layers 0..end.
    let mut best: Vec<Vec<Option<Best>>> = Vec::with_capacity(machines);
    for machine in 0..machines {
        let head = machine + 1 == machines;
        let choose = |end: usize| {
            let starts = if machine == 0 { 0..1 } else { machine..end };
            let option = |first: usize| {
                let span = Span {
                    first,
                    last: end.checked_sub(1)?,
                    head,
                };
                let before = match machine.checked_sub(1) {
                    Some(previous) => best[previous][first]?.slowest,
                    None => 0.0,
                };
                fits(machine, span).then(|| Best {
                    slowest: before.max(seconds(machine, span)),
                    first,
                })
            };
            starts
                .filter_map(option)
                .min_by(|a, b| a.slowest.total_cmp(&b.slowest))
        };
        let row = (0..=layers).map(choose).collect();
        best.push(row);
    }
    walk_back(&best, layers)
}

fn walk_back(best: &[Vec<Option<Best>>], layers: usize) -> Option<Vec<Span>> {
    let mut spans = Vec::with_capacity(best.len());
    let mut end = layers;
    for (machine, row) in best.iter().enumerate().rev() {
        let first = row[end]?.first;
        spans.push(Span {
            first,
            last: end - 1,
            head: machine + 1 == best.len(),
        });
        end = first;
    }
    spans.reverse();
    Some(spans)
}
