//! A stage computes on while what it has computed is on its way.

use std::time::Duration;

use ds4_model::TokenHash;
use ds4_proto::v1::{OpenRequest, TokenChunk, handoff_frame::Frame};

use crate::fencing::{at, client, terms};
use crate::support::stage;

/// So small that a chunk is many frames; four once were all that could wait for the next hop.
const FRAME_BYTES: u32 = 64;
/// Longer than anything here takes, shorter than the stage waits for a hop.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_nobody_takes_yet_does_not_hold_up_its_rows() {
    let stage = stage(0, 1);
    let mut client = client(&stage).await;
    let opened = OpenRequest {
        chunk_tokens: 4,
        window: 1,
        frame_bytes: FRAME_BYTES,
        timeout_ms: 60_000,
        ..terms(&mut client, "s", 1).await
    };
    client.open(opened).await.unwrap();
    let chunk = TokenChunk {
        session: "s".into(),
        epoch: 1,
        tokens: vec![3, 4, 5, 6],
        hash_before: TokenHash::default().value(),
        ..TokenChunk::default()
    };
    let open_ended = tokio_stream::StreamExt::chain(tokio_stream::iter([chunk]), tokio_stream::pending());
    let mut sender = client.clone();
    let sending = tokio::spawn(async move { sender.prefill(open_ended).await });
    let mut rows = client.handoff(at("s", 1)).await.unwrap().into_inner();
    let frame = tokio::time::timeout(PATIENCE, rows.message()).await;
    let frame = frame.expect("the rows come first").unwrap().unwrap().frame;
    assert!(
        matches!(frame, Some(Frame::Rows(_) | Frame::Beat(_))),
        "{frame:?}"
    );
    let mut delivered = client.deliver(at("s", 1)).await.unwrap().into_inner();
    let mut bytes = 0;
    let whole = async {
        loop {
            let frame = delivered.message().await.unwrap().unwrap();
            bytes += frame.data.len() as u64;
            if bytes == frame.total {
                return bytes;
            }
        }
    };
    let bytes = tokio::time::timeout(PATIENCE, whole).await.expect("all of it");
    assert!(
        bytes > u64::from(4 * FRAME_BYTES),
        "more frames than once could wait: {bytes} bytes"
    );
    sending.abort();
}
