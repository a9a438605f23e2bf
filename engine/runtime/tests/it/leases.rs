//! How long a stage keeps a session, asked of it directly and seen in its metrics.

use std::time::Duration;

use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{OpenReply, RenewRequest, TokenChunk};
use ds4_runtime::{EngineError, EngineOptions, RouteError, StageOptions};
use tonic::Code;
use tonic::transport::Channel;

use crate::fencing::{at, client, refused, terms};
use crate::support::{Served, ask, engine, prompt, stage_at, strict};

fn brief() -> Served {
    let options = StageOptions {
        lease: Duration::from_millis(300),
        idle: Duration::from_millis(1),
        ..StageOptions::default()
    };
    stage_at("127.0.0.1:0", 0, 1, options)
}

/// The 8 tokens of `terms`, handed over; where the stage stood before.
async fn hand_over(client: &mut StageClient<Channel>, session: &str, epoch: u64) -> OpenReply {
    let opened = terms(client, session, epoch).await;
    let reply = client.open(opened).await.unwrap().into_inner();
    let mut frames = client.handoff(at(session, epoch)).await.unwrap().into_inner();
    let _delivered = client.deliver(at(session, epoch)).await.unwrap();
    let chunk = TokenChunk {
        session: session.into(),
        epoch,
        start: 0,
        tokens: (3..11).collect(),
        hash_before: ds4_model::TokenHash::default().value(),
        last: true,
    };
    client.prefill(tokio_stream::iter([chunk])).await.unwrap();
    while frames.message().await.unwrap().is_some() {}
    reply
}

async fn renew(client: &mut StageClient<Channel>, session: &str, epoch: u64) -> Vec<String> {
    let request = RenewRequest {
        sessions: vec![at(session, epoch)],
    };
    client.renew(request).await.unwrap().into_inner().lost
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_session_lives_as_long_as_it_is_renewed() {
    let stage = brief();
    let mut client = client(&stage).await;
    assert_eq!(hand_over(&mut client, "s", 1).await.frontier, 0);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(renew(&mut client, "s", 1).await.is_empty(), "renewed in time");
    }
    assert_eq!(renew(&mut client, "s", 2).await, ["s"], "another epoch");
    let found = hand_over(&mut client, "s", 2).await;
    assert_eq!(
        (found.frontier, found.token_hash),
        (8, ds4_model::TokenHash::of(&[3, 4, 5, 6, 7, 8, 9, 10]).value())
    );
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(renew(&mut client, "s", 2).await, ["s"], "lapsed");
    assert_eq!(hand_over(&mut client, "s", 3).await.frontier, 0, "made again");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_full_stage_refuses_and_says_when_to_come_again() {
    let options = StageOptions {
        kv_budget: 80_000,
        lease: Duration::from_secs(30),
        ..StageOptions::default()
    };
    let stage = stage_at("127.0.0.1:0", 0, 1, options);
    let engine = engine(
        2,
        &[&stage],
        EngineOptions {
            sessions: 2,
            ..strict()
        },
    )
    .await;
    ask(&engine, &prompt(200)).await.unwrap();
    let other: Vec<u32> = std::iter::once(77).chain(prompt(300)).collect();
    let refused = ask(&engine, &other).await.unwrap_err();
    let EngineError::Route(RouteError::Full {
        retry_after, reason, ..
    }) = &refused
    else {
        panic!("{refused}")
    };
    assert!(
        reason.starts_with("kv budget: expected at most 80000 bytes, found "),
        "{reason}"
    );
    assert!(
        *retry_after > Duration::from_secs(20) && *retry_after <= Duration::from_secs(30),
        "{retry_after:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_session_larger_than_the_stage_is_refused_for_good() {
    let options = StageOptions {
        kv_budget: 1000,
        ..StageOptions::default()
    };
    let stage = stage_at("127.0.0.1:0", 0, 1, options);
    let mut client = client(&stage).await;
    let opened = terms(&mut client, "s", 1).await;
    refused(client.open(opened).await, Code::OutOfRange, "raise --kv-budget");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn the_engine_renews_what_it_may_use_again() {
    let stage = brief();
    let engine = engine(2, &[&stage], strict()).await;
    let start = prompt(100);
    let (_, answered) = ask(&engine, &start).await.unwrap();
    // Three leases long; without renewal the stage would have to begin again.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let mut client = client(&stage).await;
    let mut opened = terms(&mut client, "other", 1).await;
    opened.tokens = 8;
    client.open(opened).await.unwrap();
    let before = ds4_telemetry::metrics::Metrics::global().handoff_bytes.get();
    let second: Vec<u32> = start.iter().chain(&answered).copied().chain([5; 4]).collect();
    assert_eq!(
        ask(&engine, &second).await.unwrap().0.to_string(),
        "disaggregated"
    );
    assert!(ds4_telemetry::metrics::Metrics::global().handoff_bytes.get() > before);
}
