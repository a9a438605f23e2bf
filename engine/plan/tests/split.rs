//! Proposals: they tile, they fit, and no other split is faster.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // a test that cannot go on says so

use ds4_plan::{Machine, Part, Parts, PlanError, Share, Span, arrange, split};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// Twelve layers of 2 GiB, an embedding and a head of 1 GiB.
fn parts() -> Parts {
    Parts {
        layers: vec![
            Part {
                weights: 2 * GIB,
                kv: 1 << 20
            };
            12
        ],
        embedding: GIB,
        head: GIB,
        context: 4096,
        activation: 65_536,
    }
}

fn machines(memory: &[u64]) -> Vec<Machine> {
    memory.iter().map(|memory| Machine::of(*memory)).collect()
}

fn spans(memory: &[u64]) -> Result<Vec<String>, PlanError> {
    Ok(split(&parts(), &machines(memory))?
        .iter()
        .map(|share| share.span.to_string())
        .collect())
}

#[test]
fn equal_machines_get_equal_work_and_small_ones_what_fits() {
    assert_eq!(spans(&[40 * GIB]).unwrap(), ["0:output"]);
    assert_eq!(spans(&[40 * GIB, 40 * GIB]).unwrap(), ["0:5", "6:output"]);
    assert_eq!(spans(&[40 * GIB; 3]).unwrap(), ["0:3", "4:7", "8:output"]);
    assert_eq!(
        spans(&[6 * GIB, 40 * GIB]).unwrap(),
        ["0:1", "2:output"],
        "2 layers and the embedding take 5 GiB of 6"
    );
}

#[test]
fn what_does_not_fit_is_said() {
    let error = spans(&[40 * GIB, 8 * GIB]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("; machine 1 is large enough: name it last"),
        "{error}"
    );
    assert!(matches!(spans(&[GIB, 40 * GIB]), Err(PlanError::Stages { .. })));
    assert_eq!(spans(&[]), Err(PlanError::Machines { layers: 12, found: 0 }));
    assert_eq!(
        spans(&[40 * GIB; 13]),
        Err(PlanError::Machines {
            layers: 12,
            found: 13
        })
    );
}

#[test]
fn a_machine_three_times_as_fast_gets_three_times_the_layers() {
    let with = |rate| Machine {
        rate: Some(rate),
        ..Machine::of(40 * GIB)
    };
    let shares = split(&parts(), &[with(300.0), with(100.0)]).unwrap();
    assert_eq!(
        shares[0].span.to_string(),
        "0:9",
        "20 units of work at three a step against 5 at one"
    );
    assert!(shares.iter().all(|share| share.seconds < 1.0 / 300.0));
    // One rate alone says nothing about the other machine.
    let shares = split(&parts(), &[with(300.0), Machine::of(40 * GIB)]).unwrap();
    assert_eq!(shares[0].span.to_string(), "0:5");
}

#[test]
fn a_slow_link_counts_where_it_is_the_bottleneck() {
    let machine = |link| Machine {
        memory: 40 * GIB,
        rate: Some(1000.0),
        link: Some(link),
    };
    let fast = split(&parts(), &[machine(1e12), machine(1e12)]).unwrap();
    let slow = split(&parts(), &[machine(1e6), machine(1e12)]).unwrap();
    assert_eq!(fast[0].span.to_string(), "0:5");
    assert!(
        (slow[0].seconds - (65_536.0 + 256.0) / 1e6).abs() < 1e-9,
        "activations and one layer's rows: {slow:?}"
    );
    assert_eq!(slow[0].span.to_string(), "0:0");
}

#[test]
fn any_order_of_machines_is_tried_and_the_one_that_can_decode_decodes() {
    let shares = arrange(&parts(), &machines(&[40 * GIB, 6 * GIB, 10 * GIB])).unwrap();
    assert_eq!(shares.last().map(|share| share.machine), Some(0));
    let work: Vec<String> = shares
        .iter()
        .map(|share| format!("{}={}", share.machine, share.span))
        .collect();
    assert_eq!(
        work,
        ["1=0:1", "2=2:5", "0=6:output"],
        "the embedding costs the small one a layer either way"
    );
    assert!(
        matches!(arrange(&parts(), &machines(&[6 * GIB, 10 * GIB])), Err(PlanError::Output { found, .. }) if found == 10 * GIB)
    );
}

#[test]
fn parts_read_from_what_inspect_prints() {
    let text = r#"{"name": "x", "layers": [{"layer": 0, "ratio": 0, "weight_bytes": 5, "kv_bytes": 7}], "embedding_bytes": 1, "head_bytes": 2,
        "kv_context_tokens": 64, "activation_bytes_per_token": 16}"#;
    let parts: Parts = serde_json::from_str(text).unwrap();
    assert_eq!(parts.resident(parts.full()), 15);
}

/// Every way to cut `layers` into `machines` runs.
fn cuts(layers: usize, machines: usize) -> Vec<Vec<usize>> {
    if machines == 1 {
        return vec![vec![layers]];
    }
    (1..layers)
        .flat_map(|end| {
            cuts(layers - end, machines - 1)
                .into_iter()
                .map(move |rest| [vec![end], rest].concat())
        })
        .filter(|cut| cut.iter().all(|run| *run > 0))
        .collect()
}

/// The best by trying all: the planner's own measure of each cut, from machines that fit only that cut's spans.
fn brute(parts: &Parts, machines: &[Machine]) -> Option<f64> {
    let all: u64 = parts.layers.iter().map(|part| part.weights).sum::<u64>() + parts.head;
    let pace = |cut: &Vec<usize>| {
        let (mut first, mut slowest) = (0, 0.0_f64);
        for (i, run) in cut.iter().enumerate() {
            let span = Span {
                first,
                last: first + run - 1,
                head: i + 1 == cut.len(),
            };
            if !span.head && parts.resident(span) > machines[i].memory - machines[i].memory / 16 {
                return None;
            }
            let work = parts.layers[span.first..=span.last]
                .iter()
                .map(|part| part.weights)
                .sum::<u64>()
                + if span.head { parts.head } else { 0 };
            slowest = slowest.max(work as f64 / all as f64 / machines[i].rate.unwrap());
            first += run;
        }
        Some(slowest)
    };
    cuts(parts.layers.len(), machines.len())
        .iter()
        .filter_map(pace)
        .min_by(f64::total_cmp)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_cut_is_faster_than_the_proposal(
        weights in prop::collection::vec(1_u64..50, 3..9),
        stages in prop::collection::vec((20_u64..200, 1_u32..9), 1..3),
        rate in 1_u32..9,
    ) {
        let layers = weights.iter().map(|weights| Part { weights: *weights, kv: 1 }).collect();
        let parts = Parts { layers, embedding: 3, head: 5, context: 1, activation: 1 };
        let mut machines: Vec<Machine> = stages.iter().map(|(memory, rate)| Machine { rate: Some(f64::from(*rate)), ..Machine::of(*memory) }).collect();
        machines.push(Machine { rate: Some(f64::from(rate)), ..Machine::of(10_000) });
        let found = split(&parts, &machines);
        match brute(&parts, &machines) {
            None => prop_assert!(found.is_err()),
            Some(best) => {
                let shares = found.unwrap();
                let ends: Vec<usize> = shares.iter().map(|share: &Share| share.span.first).collect();
                prop_assert_eq!(ends[0], 0);
                prop_assert!(shares.windows(2).all(|pair| pair[0].span.last + 1 == pair[1].span.first));
                let slowest = shares.iter().map(|share| share.seconds).fold(0.0, f64::max);
                prop_assert!((slowest - best).abs() < 1e-12, "{} against {}", slowest, best);
            }
        }
    }
}
