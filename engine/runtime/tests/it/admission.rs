//! What a request is refused for, and what leaving frees.

use std::time::{Duration, Instant};

use ds4_runtime::{EngineError, EngineOptions, Event, StageOptions};

use crate::support::{answer, ask, engine, prompt, request, stage, stage_at, strict, unconnected};

#[tokio::test(flavor = "multi_thread")]
pub async fn a_prompt_beyond_the_context_names_the_limit() {
    let options = EngineOptions {
        max_tokens: 40,
        ..EngineOptions::default()
    };
    let engine = unconnected(0, &[], options);
    let refused = ask(&engine, &prompt(30)).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "context: expected at most 40 tokens, found 30 in the prompt and 16 to generate"
    );
    let refused = ask(&engine, &[]).await.unwrap_err();
    assert!(matches!(refused, EngineError::EmptyPrompt));
}

#[tokio::test(flavor = "multi_thread")]
pub async fn one_more_than_the_queue_holds_is_refused_and_the_rest_are_answered() {
    let options = EngineOptions {
        queue: 1,
        sessions: 1,
        ..EngineOptions::default()
    };
    let engine = unconnected(0, &[], options);
    let mut running = engine.generate(request(prompt(600)));
    assert!(
        matches!(running.next().await, Some(Event::Prefill { .. })),
        "it runs"
    );
    let waiting = engine.generate(request(prompt(10)));
    while engine.status().requests < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = ask(&engine, &prompt(10)).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Busy { waiting: 1, .. }),
        "{refused}"
    );
    let (running, waiting) = tokio::join!(answer(running), answer(waiting));
    assert_eq!((running.unwrap().1.len(), waiting.unwrap().1.len()), (16, 16));
    // The last event goes out a moment before the request is forgotten.
    while engine.status().requests > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn shutdown_finishes_what_runs_and_refuses_what_comes() {
    let stage = stage(0, 1);
    let engine = engine(2, &[&stage], strict()).await;
    let mut running = engine.generate(request(prompt(300)));
    assert!(matches!(running.next().await, Some(Event::Prefill { .. })));
    let ending = tokio::spawn({
        let engine = engine.clone();
        async move { engine.shutdown().await }
    });
    while !engine.status().shutting_down {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = ask(&engine, &prompt(10)).await.unwrap_err();
    assert!(matches!(refused, EngineError::ShuttingDown), "{refused}");
    assert_eq!(answer(running).await.unwrap().0.label(), "disaggregated");
    ending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_client_that_leaves_frees_every_stage_within_half_a_second() {
    let one = StageOptions {
        sessions: 1,
        ..StageOptions::default()
    };
    let (first, second) = (
        stage_at("127.0.0.1:0", 0, 0, one.clone()),
        stage_at("127.0.0.1:0", 1, 1, one),
    );
    let engine = engine(2, &[&first, &second], strict()).await;
    let mut leaving = engine.generate(request(prompt(4000)));
    assert!(matches!(leaving.next().await, Some(Event::Prefill { .. })));
    let left = Instant::now();
    drop(leaving);
    // Each stage holds one session at most: while the old one is there, this is refused.
    let answered = loop {
        match ask(&engine, &prompt(8)).await {
            Ok(answered) => break answered,
            Err(error) => assert!(
                error.to_string().contains("sessions: expected at most 1"),
                "{error}"
            ),
        }
        assert!(
            left.elapsed() < Duration::from_millis(500),
            "the session is still there"
        );
    };
    assert_eq!(answered.0.label(), "disaggregated");
}
