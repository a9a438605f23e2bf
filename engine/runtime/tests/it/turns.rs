//! Conversations: what an earlier turn left is used again, and the tokens are those of a fresh start.

use std::sync::Arc;

use ds4_runtime::{Decision, Engine, EngineOptions, Event, OnFailure, Policy};

use crate::support::{
    Served, alone, answer, ask, engine, finished, prompt, request, soon, stage, strict, unconnected,
};

/// A conversation so far: the prompt, what was answered, and `more`.
fn next(prompt: &[u32], answer: &[u32], more: u32) -> Vec<u32> {
    let more = (0..more).map(|i| 3 + (i * 7) % 250);
    prompt.iter().chain(answer).copied().chain(more).collect()
}

/// Asks and says how many prompt tokens were not computed again.
async fn cached(engine: &Arc<Engine>, prompt: &[u32]) -> (Decision, Vec<u32>, u32) {
    let (decision, tokens, end) = finished(engine.generate(request(prompt.to_vec()))).await.unwrap();
    (decision, tokens, end.cached_tokens)
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_second_turn_computes_only_what_is_new_and_says_so() {
    let engine = unconnected(0, &[], EngineOptions::default());
    let first = prompt(150);
    let (_, answered, none) = cached(&engine, &first).await;
    assert_eq!(none, 0);
    let second = next(&first, &answered, 30);
    let (_, tokens, cached_tokens) = cached(&engine, &second).await;
    // The last token that was sampled was never computed.
    assert_eq!(cached_tokens as usize, first.len() + answered.len() - 1);
    assert_eq!(tokens, alone(&second).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn the_same_prompt_again_computes_nothing() {
    let engine = unconnected(0, &[], EngineOptions::default());
    let first = ask(&engine, &prompt(150)).await.unwrap();
    let (decision, tokens, cached_tokens) = cached(&engine, &prompt(150)).await;
    assert_eq!(decision.to_string(), "local; reason=every prompt token is cached");
    assert_eq!((tokens, cached_tokens), (first.1, 150));
}

#[tokio::test(flavor = "multi_thread")]
pub async fn another_answer_than_the_one_given_goes_on_from_the_end_of_the_prompt() {
    let engine = unconnected(0, &[], EngineOptions::default());
    let first = prompt(150);
    ask(&engine, &first).await.unwrap();
    let second = next(&first, &[5, 6, 7], 30);
    let (_, tokens, cached_tokens) = cached(&engine, &second).await;
    assert_eq!((tokens, cached_tokens), (alone(&second).await, 150));
    let elsewhere = next(&first[..149], &[9], 30);
    let (_, tokens, cached_tokens) = cached(&engine, &elsewhere).await;
    assert_eq!(
        (tokens, cached_tokens),
        (alone(&elsewhere).await, 0),
        "the window of 149 is gone"
    );
}

/// Three turns over a route; each must be what a fresh start gives, and the later ones move only what is new.
async fn conversation(engine: &Arc<Engine>) {
    let mut so_far = prompt(200);
    for (turn, more) in [24, 1, 130].into_iter().enumerate() {
        let (decision, tokens, cached_tokens) = cached(engine, &so_far).await;
        assert_eq!(decision.label(), "disaggregated", "{decision}");
        assert_eq!(tokens, alone(&so_far).await, "turn {turn}");
        assert_eq!(cached_tokens == 0, turn == 0);
        so_far = next(&so_far, &tokens, more);
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn turns_over_a_route_go_on_where_the_stages_stand() {
    let (first, second) = (stage(0, 0), stage(1, 1));
    conversation(&engine(2, &[&first, &second], strict()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
pub async fn several_handoffs_per_stage_and_small_frames_give_the_same() {
    let both = stage(0, 1);
    for (streams, frame_bytes) in [(1, 300), (2, 1 << 20), (7, 1000)] {
        let options = EngineOptions {
            streams,
            frame_bytes,
            ..strict()
        };
        conversation(&engine(2, &[&both], options).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_that_lost_the_session_makes_it_again() {
    let (mut first, second) = (stage(0, 0), stage(1, 1));
    let engine = engine(2, &[&first, &second], strict()).await;
    let start = prompt(200);
    let (_, answered) = ask(&engine, &start).await.unwrap();
    let address = first.endpoint.clone();
    first.kill();
    let _again = crate::faults::restart(&address).await;
    let second_turn = next(&start, &answered, 24);
    let (decision, tokens, cached_tokens) = cached(&engine, &second_turn).await;
    assert!(
        decision.to_string().starts_with("disaggregated; retried="),
        "{decision}"
    );
    assert_eq!(tokens, alone(&second_turn).await);
    assert!(
        cached_tokens > 200,
        "the output pod's own part and rows were kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_turn_that_fails_leaves_the_session_as_it_was() {
    let (mut first, second) = (stage(0, 0), stage(1, 1));
    let options = EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    };
    let engine = engine(2, &[&first, &second], options).await;
    let start = prompt(200);
    let (_, answered) = ask(&engine, &start).await.unwrap();
    let long = next(&start, &answered, 2000);
    let mut generation = engine.generate(request(long.clone()));
    assert!(matches!(generation.next().await, Some(Event::Prefill { .. })));
    first.kill();
    let (decision, tokens, end) = finished(generation).await.unwrap();
    assert_eq!(decision.label(), "recomputed");
    assert_eq!(end.cached_tokens as usize, start.len() + answered.len() - 1);
    assert_eq!(tokens, alone(&long).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_client_that_leaves_while_a_turn_is_computed_does_not_lose_the_conversation() {
    let stage = stage(0, 1);
    let engine = engine(2, &[&stage], strict()).await;
    let start = prompt(200);
    let (_, answered) = ask(&engine, &start).await.unwrap();
    let mut leaving = engine.generate(request(next(&start, &answered, 3000)));
    assert!(matches!(leaving.next().await, Some(Event::Prefill { .. })));
    drop(leaving);
    soon("the session is back", || engine.status().cached_sessions == 1).await;
    let second = next(&start, &answered, 24);
    let (_, tokens, cached_tokens) = cached(&engine, &second).await;
    assert_eq!(tokens, alone(&second).await);
    assert_eq!(cached_tokens as usize, start.len() + answered.len() - 1);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_budget_of_nothing_keeps_nothing() {
    let options = EngineOptions {
        kept_budget: 0,
        ..EngineOptions::default()
    };
    let engine = unconnected(0, &[], options);
    for _ in 0..2 {
        assert_eq!(cached(&engine, &prompt(50)).await.2, 0);
    }
    assert_eq!(engine.status().cached_sessions, 0);
}

/// Eight conversations at once, through the same stages.
async fn crowd(engine: &Arc<Engine>, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let running: Vec<_> = prompts
        .iter()
        .map(|prompt| engine.generate(request(prompt.clone())))
        .collect();
    let mut tokens = Vec::new();
    for generation in running {
        let (decision, answered) = answer(generation).await.unwrap();
        assert_eq!(decision.label(), "disaggregated", "{decision}");
        tokens.push(answered);
    }
    tokens
}

fn prompts() -> Vec<Vec<u32>> {
    // Each begins with another token, so that none shares a beginning with another.
    (0..8_u32)
        .map(|i| {
            std::iter::once(3 + i)
                .chain(prompt(60 + 13 * i as usize))
                .collect()
        })
        .collect()
}

async fn many(stages: &[&Served]) {
    let options = EngineOptions {
        sessions: 8,
        policy: Policy::Always,
        ..strict()
    };
    let engine = engine(2, stages, options).await;
    let first = prompts();
    let answers = crowd(&engine, &first).await;
    for (prompt, answered) in first.iter().zip(&answers) {
        assert_eq!(*answered, alone(prompt).await);
    }
    let second: Vec<_> = first
        .iter()
        .zip(&answers)
        .map(|(prompt, answered)| next(prompt, answered, 24))
        .collect();
    for (prompt, answered) in second.iter().zip(crowd(&engine, &second).await) {
        assert_eq!(answered, alone(prompt).await, "second turn");
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn eight_conversations_at_once_do_not_see_each_other() {
    let (first, second) = (stage(0, 0), stage(1, 1));
    many(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_short_question_does_not_wait_for_the_end_of_a_long_prompt() {
    let stage = stage(0, 1);
    let engine = engine(2, &[&stage], strict()).await;
    let mut long = engine.generate(request(prompt(4000)));
    assert!(matches!(long.next().await, Some(Event::Prefill { .. })));
    ask(&engine, &[5, 6, 7]).await.unwrap();
    let Some(Event::Prefill { done, total }) = long.next().await else {
        panic!("the long one ended first")
    };
    assert!(done < total);
}
