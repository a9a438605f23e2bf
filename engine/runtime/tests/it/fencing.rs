//! Who may write to a session, asked of a stage directly.

use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{DescribeRequest, OpenRequest, SessionRequest, TokenChunk};
use ds4_runtime::StageOptions;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{Change, Served, stage, stage_at};

pub async fn client(stage: &Served) -> StageClient<Channel> {
    StageClient::connect(format!("http://{}", stage.endpoint))
        .await
        .unwrap()
}

/// What an output pod would send for a prompt of 8 tokens.
pub async fn terms(client: &mut StageClient<Channel>, session: &str, epoch: u64) -> OpenRequest {
    let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    OpenRequest {
        session: session.into(),
        epoch,
        incarnation: described.incarnation,
        fingerprint: described.fingerprint,
        kv_layout: described.kv_layout,
        tokens: 8,
        chunk_tokens: 8,
        window: 2,
        timeout_ms: 2000,
        activation_bits: 32,
        ..OpenRequest::default()
    }
}

pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(text), "{status}");
}

pub fn at(session: &str, epoch: u64) -> SessionRequest {
    SessionRequest {
        session: session.into(),
        epoch,
        ..SessionRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn an_older_epoch_is_fenced_off() {
    let stage = stage(0, 1);
    let mut client = client(&stage).await;
    let opened = terms(&mut client, "s", 2).await;
    client.open(opened.clone()).await.unwrap();
    let precondition = Code::FailedPrecondition;
    refused(
        client.open(opened.clone()).await,
        precondition,
        "epoch: expected 3 or later, found 2",
    );
    let older = OpenRequest {
        epoch: 1,
        ..opened.clone()
    };
    refused(
        client.open(older).await,
        precondition,
        "epoch: expected 3 or later, found 1",
    );
    refused(
        client.handoff(at("s", 1)).await,
        precondition,
        "epoch: expected 2, found 1",
    );
    refused(
        client.deliver(at("s", 1)).await,
        precondition,
        "epoch: expected 2, found 1",
    );
    assert!(!client.close(at("s", 1)).await.unwrap().into_inner().found);
    let newer = OpenRequest { epoch: 3, ..opened };
    client.open(newer).await.unwrap();
    refused(
        client.handoff(at("s", 2)).await,
        precondition,
        "epoch: expected 3, found 2",
    );
    assert!(client.close(at("s", 3)).await.unwrap().into_inner().found);
    refused(
        client.handoff(at("s", 3)).await,
        Code::NotFound,
        "session: expected an open one",
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn terms_that_do_not_fit_are_refused_by_name() {
    let limits = StageOptions {
        sessions: 1,
        max_tokens: 100,
        ..StageOptions::default()
    };
    let stage = stage_at("127.0.0.1:0", 0, 1, limits);
    let mut client = client(&stage).await;
    let good = terms(&mut client, "s", 1).await;
    let cases: [(&str, Code, Change<OpenRequest>); 8] = [
        ("incarnation: expected", Code::Aborted, |r| {
            r.incarnation = "gone".into()
        }),
        ("fingerprint: expected", Code::FailedPrecondition, |r| {
            r.fingerprint = "other".into()
        }),
        ("kv layout: expected", Code::FailedPrecondition, |r| {
            r.kv_layout = "other".into()
        }),
        (
            "tokens: expected 1 to 100, found 101",
            Code::InvalidArgument,
            |r| r.tokens = 101,
        ),
        ("tokens: expected 1 to 100, found 0", Code::InvalidArgument, |r| {
            r.tokens = 0
        }),
        (
            "tokens in a chunk: expected 1 to 100, found 0",
            Code::InvalidArgument,
            |r| r.chunk_tokens = 0,
        ),
        (
            "held tokens: expected fewer than 8, found 8",
            Code::InvalidArgument,
            |r| r.held_tokens = 8,
        ),
        (
            "activation bits: expected 32, found 8",
            Code::InvalidArgument,
            |r| r.activation_bits = 8,
        ),
    ];
    for (text, code, change) in cases {
        let mut request = good.clone();
        change(&mut request);
        refused(client.open(request).await, code, text);
    }
    client.open(good.clone()).await.unwrap();
    let second = OpenRequest {
        session: "t".into(),
        ..good
    };
    refused(
        client.open(second).await,
        Code::ResourceExhausted,
        "sessions: expected at most 1",
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_chunk_that_does_not_continue_the_session_is_refused() {
    let stage = stage(0, 1);
    let mut client = client(&stage).await;
    let good = TokenChunk {
        session: String::new(),
        epoch: 1,
        start: 0,
        tokens: (3..11).collect(),
        hash_before: ds4_model::TokenHash::default().value(),
        last: true,
    };
    let cases: [(&str, Change<TokenChunk>); 5] = [
        ("frontier: expected 0, found 4", |c| c.start = 4),
        ("token hash: expected", |c| c.hash_before ^= 1),
        ("tokens in a chunk: expected 1 to 8, found 9", |c| {
            c.tokens.push(3)
        }),
        ("tokens: expected 8, found 8 (last: false)", |c| c.last = false),
        ("token", |c| c.tokens[3] = 1 << 30),
    ];
    for (i, (text, change)) in cases.into_iter().enumerate() {
        let session = format!("s{i}");
        let opened = terms(&mut client, &session, 1).await;
        client.open(opened).await.unwrap();
        let mut frames = client.handoff(at(&session, 1)).await.unwrap().into_inner();
        let mut chunk = TokenChunk {
            session,
            ..good.clone()
        };
        change(&mut chunk);
        // The refusal comes on the stream that is wrong, or on the handoff, whichever is checked there.
        let sent = client.prefill(tokio_stream::iter([chunk])).await;
        let status = match sent {
            Err(status) => status,
            Ok(_) => loop {
                match frames.message().await {
                    Err(status) => break status,
                    Ok(frame) => assert!(frame.is_some(), "{text}: the handoff ended well"),
                }
            },
        };
        assert!(status.message().contains(text), "{text}: {status}");
    }
}
