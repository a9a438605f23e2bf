//! Stages that are told to leave, and engines that are.

use std::time::{Duration, Instant};

use ds4_runtime::{EngineOptions, Event, OnFailure, StageOptions};

use crate::fencing::client;
use crate::support::{alone, answer, ask, engine, prompt, request, soon, stage, stage_at, strict};

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_told_to_stop_hands_over_what_it_has_begun_and_leaves() {
    let mut stage = stage(0, 1);
    let options = EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    };
    let engine = engine(2, &[&stage], options).await;
    let mut generation = engine.generate(request(prompt(2000)));
    assert!(matches!(generation.next().await, Some(Event::Prefill { .. })));
    stage.terminate();
    let (decision, tokens) = answer(generation).await.unwrap();
    assert_eq!(decision.to_string(), "disaggregated");
    assert_eq!(tokens, alone(&prompt(2000)).await);
    let begun = Instant::now();
    soon("it has left", || {
        std::net::TcpStream::connect(&stage.endpoint).is_err()
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    let (decision, tokens) = ask(&engine, &prompt(90)).await.unwrap();
    assert_eq!(decision.label(), "recomputed", "{decision}");
    assert_eq!(tokens, alone(&prompt(90)).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_draining_stage_takes_no_new_session_and_says_so() {
    let mut stage = stage(0, 1);
    let engine = engine(2, &[&stage], strict()).await;
    let mut running = engine.generate(request(prompt(3000)));
    assert!(matches!(running.next().await, Some(Event::Prefill { .. })));
    let mut client = client(&stage).await;
    let opened = crate::fencing::terms(&mut client, "new", 1).await;
    stage.terminate();
    let refused = loop {
        let request = ds4_proto::v1::OpenRequest {
            session: uuid(),
            ..opened.clone()
        };
        match client.open(request).await {
            Err(status) => break status,
            Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    assert_eq!(refused.message(), "stage: draining, takes no new work");
    assert!(
        client
            .describe(ds4_proto::v1::DescribeRequest {})
            .await
            .unwrap()
            .into_inner()
            .draining
    );
    assert_eq!(answer(running).await.unwrap().0.label(), "disaggregated");
}

/// A name that no other session has.
fn uuid() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_drain_ends_at_its_timeout() {
    let options = StageOptions {
        drain_timeout: Duration::from_millis(300),
        ..StageOptions::default()
    };
    let mut stage = stage_at("127.0.0.1:0", 0, 1, options);
    let engine = engine(2, &[&stage], strict()).await;
    let mut running = engine.generate(request(prompt(4000)));
    assert!(matches!(running.next().await, Some(Event::Prefill { .. })));
    stage.terminate();
    let error = answer(running).await.unwrap_err().to_string();
    assert!(error.contains(&stage.endpoint), "{error}");
}
