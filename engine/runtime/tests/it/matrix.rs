//! Every fault at every point, on every hop: each ends in the right answer within the deadline, with a verdict that is true, and leaves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ds4_runtime::{Decision, EngineOptions, OnFailure, StageOptions};

use crate::fencing::{client, terms};
use crate::proxy::{Fault, Kind, Proxy, Toward};
use crate::support::{Served, alone, ask, prompt, stage_at, strict, unconnected};

/// From the connection's preface over the handshake, the opening and the first frames to the middle and the end of what flows.
const POINTS: [u64; 10] = [0, 40, 120, 400, 900, 2_500, 8_000, 30_000, 90_000, 220_000];
const SILENCE: Duration = Duration::from_secs(2);
/// The silence, a probe of one second, and the prompt once more on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
const LENGTH: usize = 120;
/// Cases that run beside each other.
const LANES: usize = 6;

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Before which of the two stages.
    hop: usize,
    fault: Fault,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        for toward in [Toward::Stage, Toward::Caller] {
            for after in POINTS {
                let fault = Fault { kind, toward, after };
                cases.extend([0, 1].map(|hop| Case { hop, fault }));
            }
        }
    }
    cases
}

/// One session at a time: what is left of a case refuses the next one.
fn stages() -> [Served; 2] {
    [0, 1].map(|layer| {
        let options = StageOptions {
            sessions: 1,
            lease: Duration::from_millis(100),
            idle: Duration::from_millis(1),
            ..StageOptions::default()
        };
        stage_at("127.0.0.1:0", layer, layer, options)
    })
}

/// Whether the fault struck, and what the answer said of how it came about.
async fn run(case: Case, stages: &[Served; 2], expected: &[u32]) -> (bool, Decision) {
    let proxies: Vec<_> = (0..2)
        .map(|hop| Proxy::before(&stages[hop].endpoint, (hop == case.hop).then_some(case.fault)))
        .collect();
    let options = EngineOptions {
        handoff_timeout: SILENCE,
        on_failure: OnFailure::RecomputeLocally,
        kept_budget: 0,
        ..strict()
    };
    let engine = unconnected(2, &[&proxies[0].served, &proxies[1].served], options);
    // A fault before the first prompt is mended by asking again.
    let _ = engine.route_complete(SILENCE * 2).await;
    let started = Instant::now();
    let (decision, tokens) = ask(&engine, &prompt(LENGTH))
        .await
        .unwrap_or_else(|error| panic!("{case:?}: {error}"));
    assert!(started.elapsed() < DEADLINE, "{case:?}: {:?}", started.elapsed());
    assert_eq!(tokens, expected, "{case:?}: {decision}");
    if let Decision::Recomputed { reason } = &decision {
        assert!(
            proxies
                .iter()
                .any(|proxy| reason.contains(&proxy.served.endpoint)),
            "{case:?}: {reason}"
        );
    }
    engine.shutdown().await;
    nothing_left(case, stages).await;
    (proxies[case.hop].struck(), decision)
}

/// Both stages take a session again, which they do not while one works.
async fn nothing_left(case: Case, stages: &[Served; 2]) {
    let started = Instant::now();
    for stage in stages {
        let mut client = client(stage).await;
        let mut opened = terms(&mut client, "probe", 1).await;
        loop {
            match client.open(opened.clone()).await {
                Ok(_) => break,
                Err(status) => assert!(started.elapsed() < SILENCE * 3, "{case:?}: {status}"),
            }
            opened.epoch += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            client
                .close(crate::fencing::at("probe", opened.epoch))
                .await
                .unwrap()
                .into_inner()
                .found
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn every_fault_at_every_point_ends_in_the_right_answer_and_leaves_nothing() {
    let (cases, expected) = (Arc::new(cases()), Arc::new(alone(&prompt(LENGTH)).await));
    assert!(cases.len() >= 300);
    let next = Arc::new(AtomicUsize::new(0));
    let lanes = (0..LANES).map(|_| {
        let (cases, expected, next) = (Arc::clone(&cases), Arc::clone(&expected), Arc::clone(&next));
        tokio::spawn(async move {
            let (stages, mut seen) = (stages(), Vec::new());
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (struck, decision) = run(*case, &stages, &expected).await;
                seen.push((case.fault.kind, struck, decision));
            }
            seen
        })
    });
    let mut seen = Vec::new();
    for lane in lanes.collect::<Vec<_>>() {
        seen.extend(lane.await.unwrap());
    }
    let struck = seen.iter().filter(|(_, struck, _)| *struck).count();
    let recomputed = seen
        .iter()
        .filter(|(_, _, decision)| decision.label() == "recomputed")
        .count();
    let count = cases.len();
    eprintln!("{count} cases, {struck} struck, {recomputed} recomputed; nothing was left after any");
    assert!(
        struck * 4 >= cases.len() * 3,
        "only {struck} of {} faults struck",
        cases.len()
    );
    assert!(
        recomputed * 4 >= cases.len(),
        "only {recomputed} of {} did harm",
        cases.len()
    );
    // Late and shredded bytes are the same bytes.
    let harmless = [Kind::Delay, Kind::Shred];
    let harmed = seen
        .iter()
        .find(|(kind, _, decision)| harmless.contains(kind) && decision.label() == "recomputed");
    assert!(harmed.is_none(), "{harmed:?}");
}
