//! Places with more than one stage.

use ds4_gguf::LayerSpan;
use ds4_runtime::{Decision, Engine, EngineOptions, Event, OnFailure, RouteState};

use crate::support::{LAYERS, Served, alone, answer, ask, prompt, request, soon, stage, strict, whole};

async fn engine(places: &[&[&Served]], options: EngineOptions) -> std::sync::Arc<Engine> {
    let own = LayerSpan {
        first: 2,
        last: LAYERS - 1,
        head: true,
    };
    let place = |stages: &&[&Served]| {
        stages
            .iter()
            .map(|stage| stage.endpoint.clone())
            .collect::<Vec<_>>()
            .join("|")
    };
    let engine = Engine::new(whole(), own, places.iter().map(place).collect(), options);
    engine
        .route_complete(std::time::Duration::from_secs(10))
        .await
        .unwrap();
    engine
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_spare_takes_over_within_the_request_and_the_answer_says_so() {
    let (mut first, spare, second) = (stage(0, 0), stage(0, 0), stage(1, 1));
    let engine = engine(&[&[&first, &spare], &[&second]], strict()).await;
    let mut generation = engine.generate(request(prompt(2000)));
    assert!(matches!(generation.next().await, Some(Event::Prefill { .. })));
    first.kill();
    let (decision, tokens) = answer(generation).await.unwrap();
    let Decision::Disaggregated {
        retried: Some(reason),
        ..
    } = &decision
    else {
        panic!("{decision}")
    };
    assert!(
        reason.starts_with(&format!("stage {}: not reachable", first.endpoint)),
        "{reason}"
    );
    assert_eq!(tokens, alone(&prompt(2000)).await);
    // The next one goes there at once.
    assert_eq!(
        ask(&engine, &prompt(100)).await.unwrap().0.to_string(),
        "disaggregated"
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn without_any_spare_left_the_policy_decides() {
    let (mut first, mut spare, second) = (stage(0, 0), stage(0, 0), stage(1, 1));
    let options = EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    };
    let engine = engine(&[&[&first, &spare], &[&second]], options).await;
    first.kill();
    spare.kill();
    let (decision, tokens) = ask(&engine, &prompt(200)).await.unwrap();
    assert_eq!(decision.label(), "recomputed", "{decision}");
    assert_eq!(tokens, alone(&prompt(200)).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_spare_of_other_layers_is_no_spare() {
    let (mut first, wrong) = (stage(0, 1), stage(0, 0));
    let engine = engine(&[&[&first, &wrong]], strict()).await;
    first.kill();
    let error = ask(&engine, &prompt(100)).await.unwrap_err().to_string();
    assert!(error.contains(&first.endpoint), "{error}");
    soon("the route says what is wrong", || {
        matches!(engine.status().route, RouteState::Incomplete { reason } if reason.contains("starts at layer 1"))
    })
    .await;
}
