//! Many at once: batches, pieces, slow readers, deadlines and budgets change no token of anyone.

use std::time::{Duration, Instant};

use ds4_runtime::{EngineError, EngineOptions, Event, Flow, Generate, Priority, StageOptions};

use crate::support::{
    DECODED, alone, answer, ask, engine, finished, prompt, request, soon, stage_at, strict, unconnected,
};

/// Request `i` of many: prompts of all lengths that share nothing.
fn one_of(i: usize) -> Vec<u32> {
    prompt(700)[i * 7..i * 7 + 1 + i * 29 % 400].to_vec()
}

fn many() -> EngineOptions {
    EngineOptions {
        sessions: 24,
        ..strict()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_share_passes_with_each_other_and_with_prompts_are_those_of_one_alone() {
    let roomy = || StageOptions {
        sessions: 64,
        ..StageOptions::default()
    };
    let (first, second) = (
        stage_at("127.0.0.1:0", 0, 0, roomy()),
        stage_at("127.0.0.1:0", 1, 1, roomy()),
    );
    for engine in [
        unconnected(0, &[], many()),
        engine(2, &[&first, &second], many()).await,
    ] {
        let asked = (0..24).map(|i| {
            let (engine, prompt) = (engine.clone(), one_of(i));
            tokio::spawn(async move { ask(&engine, &prompt).await.unwrap().1 })
        });
        let answers = futures::future::join_all(asked).await;
        for (i, answered) in answers.into_iter().enumerate() {
            assert_eq!(answered.unwrap(), alone(&one_of(i)).await, "request {i}");
        }
        soon("all have ended", || engine.status().requests == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_stops_nobody_else_and_gets_all_in_the_end() {
    let engine = unconnected(0, &[], many());
    let long = Generate {
        max_tokens: 300,
        ..request(prompt(40))
    };
    let slow = engine.generate(long);
    // More tokens than events may wait.
    let other = Generate {
        max_tokens: 400,
        ..request(prompt(50))
    };
    assert_eq!(answer(engine.generate(other)).await.unwrap().1.len(), 400);
    let late = answer(slow).await.unwrap().1;
    assert_eq!(late.len(), 300);
    assert_eq!(late[..DECODED as usize], alone(&prompt(40)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_request_wherever_it_is_and_keeps_the_session() {
    let engine = unconnected(
        0,
        &[],
        EngineOptions {
            sessions: 1,
            ..strict()
        },
    );
    let until = |prompt: Vec<u32>, deadline| Generate {
        deadline: Some(deadline),
        max_tokens: 20_000,
        ..request(prompt)
    };
    let passed = Instant::now();
    let refused = answer(engine.generate(until(prompt(4000), passed)))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, EngineError::Deadline),
        "while it waits or prefills: {refused}"
    );
    let mut running = engine.generate(until(prompt(100), Instant::now() + Duration::from_millis(500)));
    let mut told = 0;
    let ended = loop {
        match running.next().await.unwrap() {
            Event::Token(_) => told += 1,
            Event::Failed(error) => break error,
            Event::Finished(_) => panic!("20000 tokens within half a second"),
            _ => {}
        }
    };
    assert!(matches!(ended, EngineError::Deadline), "{ended}");
    if told > 0 {
        let (_, _, end) = finished(engine.generate(request(prompt(100)))).await.unwrap();
        assert_eq!(end.cached_tokens, 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_when_to_come_again() {
    let options = EngineOptions {
        sessions: 1,
        queue_timeout: Duration::from_millis(20),
        ..strict()
    };
    let engine = unconnected(0, &[], options);
    let long = Generate {
        max_tokens: 10_000,
        ..request(prompt(10))
    };
    let mut running = engine.generate(long);
    while !matches!(running.next().await, Some(Event::Token(_))) {}
    let refused = ask(&engine, &prompt(10)).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Waited { retry_after, .. } if retry_after >= Duration::from_secs(1)),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kv_budget_is_for_running_and_kept_sessions_together() {
    let layout = &crate::support::whole().info().layout.clone();
    let options = EngineOptions {
        kv_budget: layout.bytes(0..layout.n_layer(), 8191),
        ..many()
    };
    let engine = unconnected(0, &[], options);
    let refused = ask(&engine, &prompt(9000)).await.unwrap_err().to_string();
    assert!(refused.starts_with("kv budget: expected at most"), "{refused}");
    ask(&engine, &prompt(200)).await.unwrap();
    soon("it is kept", || engine.status().cached_sessions == 1).await;
    // What this one may come to hold is all that there is.
    let other = Generate {
        max_tokens: 8100,
        ..request(vec![7; 30])
    };
    let mut running = engine.generate(other);
    while !matches!(running.next().await, Some(Event::Token(_))) {}
    assert_eq!(engine.status().cached_sessions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_request_goes_before_those_that_wait_longer() {
    let engine = unconnected(
        0,
        &[],
        EngineOptions {
            sessions: 1,
            ..strict()
        },
    );
    let first = engine.generate(request(prompt(3000)));
    soon("it runs", || engine.status().requests == 1).await;
    let (order, mut ends) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), Vec::new());
    for (name, priority) in [
        ("low", Priority::Low),
        ("normal", Priority::Normal),
        ("high", Priority::High),
    ] {
        // The flow that has had nothing yet goes first; of those that had, the heaviest.
        for turn in 0..3 {
            let flow = Flow { client: 1, priority };
            let generation = engine.generate(Generate {
                flow,
                ..request(prompt(20 + turn))
            });
            let order = order.clone();
            ends.push(tokio::spawn(async move {
                answer(generation).await.unwrap();
                order.lock().unwrap().push(name);
            }));
        }
    }
    answer(first).await.unwrap();
    futures::future::join_all(ends).await;
    let order = order.lock().unwrap();
    let last = |name| order.iter().rposition(|other| *other == name);
    assert!(
        last("high") < last("normal") && last("normal") < last("low"),
        "{order:?}"
    );
}
