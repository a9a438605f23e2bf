//! Stages that die, stall and come back while a prompt is computed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_runtime::{Decision, EngineOptions, Event, OnFailure, RouteState, StageOptions};

use crate::meddle::{Changes, OnHandoff, Passed, meddle};
use crate::support::{alone, answer, ask, engine, prompt, request, stage, stage_at, strict};

/// Long enough that a stage can die in the middle.
const LONG: usize = 3000;

fn lenient() -> EngineOptions {
    EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_killed_in_the_middle_is_named_and_the_answer_comes_all_the_same() {
    let expected = alone(&prompt(LONG)).await;
    for victim in 0..2 {
        let mut stages = [stage(0, 0), stage(1, 1)];
        let engine = engine(2, &[&stages[0], &stages[1]], lenient()).await;
        let mut generation = engine.generate(request(prompt(LONG)));
        assert!(matches!(generation.next().await, Some(Event::Prefill { .. })));
        stages[victim].kill();
        let (decision, tokens) = answer(generation).await.unwrap();
        let Decision::Recomputed { reason } = &decision else {
            panic!("stage {victim} is gone, yet {decision}")
        };
        let culprit = format!("stage {}: not reachable", stages[victim].endpoint);
        assert!(reason.starts_with(&culprit), "{reason}");
        assert_eq!(tokens, expected, "recomputed tokens");
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn the_policy_fail_fails_within_the_deadline() {
    let mut stages = [stage(0, 0), stage(1, 1)];
    let engine = engine(2, &[&stages[0], &stages[1]], strict()).await;
    let mut generation = engine.generate(request(prompt(LONG)));
    assert!(matches!(generation.next().await, Some(Event::Prefill { .. })));
    let killed = Instant::now();
    stages[0].kill();
    let error = answer(generation).await.unwrap_err().to_string();
    assert!(
        killed.elapsed() < Duration::from_secs(20),
        "{:?}",
        killed.elapsed()
    );
    assert!(error.contains(&stages[0].endpoint), "{error}");
    // The route is looked at by a task of its own.
    while !matches!(engine.status().route, RouteState::Incomplete { .. }) {
        assert!(
            killed.elapsed() < Duration::from_secs(40),
            "{:?}",
            engine.status().route
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_handoff_that_stalls_ends_at_the_deadline() {
    let silent = || -> OnHandoff {
        let mut passed = 0;
        Box::new(move |frame| {
            passed += 1;
            if passed > 3 {
                Passed::Silence
            } else {
                Passed::Frames(vec![frame])
            }
        })
    };
    let stage = stage(0, 1);
    let changes = Changes {
        handoff: Arc::new(silent),
        ..Changes::default()
    };
    let stage = meddle(&stage, changes);
    let options = EngineOptions {
        handoff_timeout: Duration::from_secs(1),
        ..lenient()
    };
    let engine = engine(2, &[&stage], options).await;
    let started = Instant::now();
    let (decision, tokens) = ask(&engine, &prompt(200)).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    let Decision::Recomputed { reason } = decision else {
        panic!("{decision}")
    };
    assert!(reason.contains("KV frames: nothing came within 1s"), "{reason}");
    assert_eq!(tokens, alone(&prompt(200)).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_that_restarted_serves_the_next_request() {
    let mut first = stage(0, 0);
    let second = stage(1, 1);
    let engine = engine(2, &[&first, &second], lenient()).await;
    ask(&engine, &prompt(100)).await.unwrap();
    first.kill();
    let address = first.endpoint.clone();
    let _again = restart(&address).await;
    // Nobody asked the route in between: the request itself finds another process there, and asks again.
    let other: Vec<u32> = prompt(101)[1..].to_vec();
    let (decision, tokens) = ask(&engine, &other).await.unwrap();
    assert!(
        decision.to_string().starts_with("disaggregated; retried=stage"),
        "{decision}"
    );
    assert_eq!(tokens, alone(&other).await);
}

/// The killed listener's port is free once its runtime has let go of it.
pub async fn restart(address: &str) -> crate::support::Served {
    while std::net::TcpListener::bind(address).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stage_at(address, 0, 0, StageOptions::default())
}
