//! State that is not what it must be: refused, with the field and both values.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ds4_proto::v1::{
    ActivationFrame, Commit, Description, HandoffFrame, KvFrame, KvKind, handoff_frame::Frame,
};
use ds4_runtime::EngineError;
use sha2::{Digest, Sha256};

use crate::meddle::{Changes, OnHandoff, Passed, meddle};
use crate::support::{Change, alone, ask, engine, prompt, stage, strict, unconnected};

/// The answer when the last stage's handoff passes through `change`.
async fn through(change: impl Fn() -> OnHandoff + Send + Sync + 'static) -> Result<Vec<u32>, EngineError> {
    let (first, second) = (stage(0, 0), stage(1, 1));
    let changes = Changes {
        handoff: Arc::new(change),
        ..Changes::default()
    };
    let second = meddle(&second, changes);
    let engine = engine(2, &[&first, &second], strict()).await;
    ask(&engine, &prompt(100)).await.map(|(_, tokens)| tokens)
}

/// Changes the first frame of `kind`.
pub fn first_of(kind: KvKind, change: impl Fn(&mut KvFrame) + Send + 'static) -> OnHandoff {
    let mut done = false;
    Box::new(move |mut frame| {
        if let Some(Frame::Rows(rows)) = &mut frame.frame
            && rows.kind() == kind
            && !std::mem::replace(&mut done, true)
        {
            change(rows);
        }
        Passed::Frames(vec![frame])
    })
}

fn on_commit(change: fn(&mut Commit)) -> OnHandoff {
    Box::new(move |mut frame| {
        if let Some(Frame::Commit(commit)) = &mut frame.frame {
            change(commit);
        }
        Passed::Frames(vec![frame])
    })
}

fn edit(data: &Bytes, change: impl FnOnce(&mut [u8])) -> Bytes {
    let mut bytes = BytesMut::from(&data[..]);
    change(&mut bytes);
    bytes.freeze()
}

pub async fn refusal(change: impl Fn() -> OnHandoff + Send + Sync + 'static) -> String {
    through(change).await.expect_err("refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
pub async fn an_untouched_handoff_passes() {
    let tokens = through(|| Box::new(|frame| Passed::Frames(vec![frame])))
        .await
        .unwrap();
    assert_eq!(tokens, alone(&prompt(100)).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_flipped_bit_is_found_by_the_checksum() {
    let found = refusal(|| {
        first_of(KvKind::Compressed, |rows| {
            rows.data = edit(&rows.data, |d| d[3] ^= 1)
        })
    })
    .await;
    assert!(found.contains("KV crc32c: expected "), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_row_that_the_model_cannot_produce_is_refused_by_layer_kind_and_row() {
    // 0x7f is no E4M3 number.
    let change = |rows: &mut KvFrame| {
        rows.data = edit(&rows.data, |data| data[0] = 0x7f);
        rows.crc32c = crc_fast::crc32_iscsi(&rows.data);
    };
    let found = refusal(move || first_of(KvKind::Compressed, change)).await;
    assert!(
        found.contains("layer 1") && found.contains("compressed") && found.contains("row 0"),
        "{found}"
    );
}

/// What no checksum can find: a valid row with other content, all sums made anew. The answer shows it.
#[tokio::test(flavor = "multi_thread")]
pub async fn another_valid_row_changes_the_tokens() {
    let forge = || -> OnHandoff {
        let mut digest = Sha256::new();
        let mut forged = false;
        Box::new(move |mut frame: HandoffFrame| {
            match &mut frame.frame {
                Some(Frame::Rows(rows)) => {
                    if rows.kind() == KvKind::Window && !std::mem::replace(&mut forged, true) {
                        let row = rows.data.len() / rows.rows as usize;
                        let last = rows.data.len() - row;
                        // The other sign: the same magnitudes, so the same scales.
                        rows.data = edit(&rows.data, |data| {
                            data[last..last + 64].iter_mut().for_each(|code| *code ^= 0x80)
                        });
                        rows.crc32c = crc_fast::crc32_iscsi(&rows.data);
                    }
                    for number in [rows.layer, rows.kind.cast_unsigned(), rows.rows, rows.crc32c] {
                        digest.update(number.to_le_bytes());
                    }
                    digest.update(rows.first_row.to_le_bytes());
                }
                Some(Frame::Commit(commit)) => {
                    commit.digest = Bytes::copy_from_slice(&digest.finalize_reset())
                }
                Some(Frame::Beat(_)) | None => {}
            }
            Passed::Frames(vec![frame])
        })
    };
    let tokens = through(forge).await.expect("every check passes");
    assert_ne!(tokens, alone(&prompt(100)).await);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_commit_that_does_not_match_names_the_field() {
    let cases: [(&str, Change<Commit>); 7] = [
        ("frontier: expected 100, found 101", |c| c.frontier += 1),
        ("token hash: expected ", |c| c.token_hash ^= 1),
        ("epoch: expected ", |c| c.epoch += 1),
        ("digest: expected ", |c| c.digest = Bytes::from_static(&[0; 32])),
        ("frames: expected ", |c| c.frames += 1),
        ("bytes: expected ", |c| c.bytes += 1),
        ("row counts: expected 69..100 in layer 1, found 69..101", |c| {
            c.rows[0].end += 1
        }),
    ];
    for (text, change) in cases {
        let found = refusal(move || on_commit(change)).await;
        assert!(found.contains(text), "{text}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn missing_doubled_and_foreign_frames_are_refused() {
    let dropped = refusal(|| {
        let mut done = false;
        Box::new(move |frame| {
            let rows = matches!(&frame.frame, Some(Frame::Rows(_)));
            Passed::Frames(if rows && !std::mem::replace(&mut done, true) {
                Vec::new()
            } else {
                vec![frame]
            })
        })
    })
    .await;
    assert!(
        dropped.contains("expected") && dropped.contains("found"),
        "{dropped}"
    );
    let doubled = refusal(|| Box::new(|frame| Passed::Frames(vec![frame.clone(), frame]))).await;
    assert!(
        doubled.contains("expected") && doubled.contains("found"),
        "{doubled}"
    );
    let foreign = refusal(|| first_of(KvKind::Compressed, |rows| rows.layer = 0)).await;
    assert!(foreign.contains("layer"), "{foreign}");
    let unknown = refusal(|| first_of(KvKind::Compressed, |rows| rows.kind = 77)).await;
    assert!(
        unknown.contains("kind of KV rows: expected 1 to 5, found 77"),
        "{unknown}"
    );
    let stale = refusal(|| first_of(KvKind::Compressed, |rows| rows.epoch += 1)).await;
    assert!(stale.contains("epoch: expected "), "{stale}");
    let unfinished = refusal(|| {
        Box::new(|frame| {
            let commit = matches!(&frame.frame, Some(Frame::Commit(_)));
            Passed::Frames(if commit { Vec::new() } else { vec![frame] })
        })
    })
    .await;
    assert!(
        unfinished.contains("expected a commit, found the end of the stream"),
        "{unfinished}"
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn activations_are_checked_too() {
    let cases: [(&str, Change<ActivationFrame>); 4] = [
        ("activation crc32c: expected ", |f| f.crc32c ^= 1),
        ("bytes of a chunk's activations: expected ", |f| f.total += 4),
        ("token hash: expected ", |f| f.hash_before ^= 1),
        ("frontier: expected ", |f| f.start += 1),
    ];
    for (text, change) in cases {
        let stage = stage(0, 1);
        let changes = Changes {
            activations: Arc::new(change),
            ..Changes::default()
        };
        let stage = meddle(&stage, changes);
        let engine = engine(2, &[&stage], strict()).await;
        let found = ask(&engine, &prompt(100)).await.unwrap_err().to_string();
        assert!(found.contains(text), "{text}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_of_another_model_or_build_never_joins() {
    let cases: [(&str, Change<Description>); 7] = [
        ("protocol: expected 2 (ours), found 3 (theirs)", |d| {
            d.protocol += 1
        }),
        ("fingerprint: expected ", |d| d.fingerprint = "0".repeat(64)),
        ("layers: expected 3 (ours), found 4 (theirs)", |d| d.layers += 1),
        ("kv layout: expected ", |d| d.kv_layout = "other".into()),
        (
            "numerics: expected canonical (ours), found reference (theirs)",
            |d| d.numerics = "reference".into(),
        ),
        ("build: expected ", |d| d.build = "0.0.0".into()),
        (
            "expected a stage that starts at layer 1, found the output stage with layers 2",
            |d| d.last = 0,
        ),
    ];
    for (text, change) in cases {
        let stage = stage(0, 1);
        let changes = Changes {
            description: Arc::new(change),
            ..Changes::default()
        };
        let stage = meddle(&stage, changes);
        let engine = unconnected(2, &[&stage], strict());
        let found = engine
            .route_complete(Duration::from_secs(1))
            .await
            .unwrap_err()
            .to_string();
        assert!(found.contains(text), "{text}: {found}");
    }
}
