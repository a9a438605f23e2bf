//! What others got wrong, row by row, and the tests that hold it here: the gaps of the June-12 code of upstream's pull request 401 and of its
//! test list, and the complaints about other engines that split prefill from decode, as far as an engine can cause them.
//!
//! [`ROWS`] is the table; the compiler holds its names. Tests of rows that no other file is about are below it.

use std::sync::Arc;

use bytes::BytesMut;
use ds4_proto::v1::{KvFrame, KvKind, TokenChunk};
use ds4_runtime::{Event, FinishReason, OnFailure, RouteState, StageOptions};
use tonic::Code;

use crate::fencing::{at, client, refused, terms};
use crate::support::{
    Change, alone, answer, ask, engine, finished, prompt, request, soon, stage, stage_at, strict, unconnected,
};
use crate::tamper::{first_of, refusal};
use crate::{admission, drain, equal, faults, fencing, leases, matrix, spares, store, tamper, turns};

type Test = fn();

/// Row, and the tests that hold it.
const ROWS: &[(&str, &[Test])] = &[
    (
        "June 12: a fresh replacement accepts a shard for layers it never computed",
        &[
            a_fresh_replacement_hands_over_nothing_that_it_did_not_compute,
            turns::a_stage_that_lost_the_session_makes_it_again,
        ],
    ),
    (
        "gap: end of sequence stops decode on the owner",
        &[the_end_of_a_turn_stops_decode_on_the_owner],
    ),
    (
        "gap: cancel in the middle of generation",
        &[a_client_that_leaves_in_the_middle_of_decode_leaves_nothing],
    ),
    (
        "gap: pull, advance by generated tokens, extend",
        &[turns::turns_over_a_route_go_on_where_the_stages_stand],
    ),
    (
        "gap: hash mismatch on pull is refused",
        &[tamper::a_commit_that_does_not_match_names_the_field],
    ),
    (
        "gap: row counts other than tokens over ratio are refused",
        &[
            tamper::a_commit_that_does_not_match_names_the_field,
            tamper::missing_doubled_and_foreign_frames_are_refused,
        ],
    ),
    (
        "gap: truncated or trailing payload",
        &[a_payload_cut_short_or_with_more_behind_is_refused],
    ),
    (
        "gap: checksum corruption",
        &[tamper::a_flipped_bit_is_found_by_the_checksum],
    ),
    ("gap: duplicate worker", &[a_stage_named_twice_is_no_route]),
    (
        "gap: routes with gaps and overlaps",
        &[routes_with_a_gap_or_an_overlap_name_the_layer],
    ),
    (
        "gap: context or chunk mismatch",
        &[
            a_prompt_longer_than_a_stage_holds_is_refused_by_name,
            fencing::terms_that_do_not_fit_are_refused_by_name,
        ],
    ),
    (
        "gap: peer killed during prefill, handoff, decode",
        &[
            faults::a_stage_killed_in_the_middle_is_named_and_the_answer_comes_all_the_same,
            matrix::every_fault_at_every_point_ends_in_the_right_answer_and_leaves_nothing,
            stages_that_die_during_decode_are_not_missed,
        ],
    ),
    (
        "gap: two sessions interleaved",
        &[turns::eight_conversations_at_once_do_not_see_each_other],
    ),
    ("gap: oversized frame", &[a_frame_beyond_the_limit_is_refused]),
    (
        "gap: slow peer",
        &[faults::a_handoff_that_stalls_ends_at_the_deadline],
    ),
    (
        "B1: wanted but no endpoint looks like declined",
        &[
            a_route_that_is_not_there_is_told_from_one_that_was_declined,
            equal::the_policy_decides_and_says_why,
        ],
    ),
    // How a prompt came in is not the engine's: every prompt is tokens here.
    (
        "B2: some requests never take the route",
        &[equal::two_and_three_stages_decode_what_one_process_decodes],
    ),
    (
        "B3: nothing was moved, and tests could not see it",
        &[tamper::another_valid_row_changes_the_tokens],
    ),
    (
        "B4: fallbacks under another label",
        &[
            spares::a_spare_takes_over_within_the_request_and_the_answer_says_so,
            spares::without_any_spare_left_the_policy_decides,
        ],
    ),
    (
        "B5: garbage as success",
        &[
            tamper::a_row_that_the_model_cannot_produce_is_refused_by_layer_kind_and_row,
            tamper::activations_are_checked_too,
        ],
    ),
    (
        "B6: failures as success",
        &[faults::the_policy_fail_fails_within_the_deadline],
    ),
    (
        "B7: an abort on one side is not told to the other",
        &[a_stage_that_fails_is_heard_before_any_deadline],
    ),
    (
        "B8: errors swallowed until a timeout",
        &[a_stage_that_fails_is_heard_before_any_deadline],
    ),
    (
        "B9: a layout mismatch does not reach the client",
        &[tamper::a_stage_of_another_model_or_build_never_joins],
    ),
    (
        "B10: rows pinned after an abort, a refusal or a lost end",
        &[
            admission::a_client_that_leaves_frees_every_stage_within_half_a_second,
            leases::a_session_lives_as_long_as_it_is_renewed,
        ],
    ),
    (
        "B11: decode goes on from incomplete rows",
        &[
            tamper::missing_doubled_and_foreign_frames_are_refused,
            turns::a_turn_that_fails_leaves_the_session_as_it_was,
        ],
    ),
    (
        "B12: failures under load and after idle hours",
        &[
            turns::eight_conversations_at_once_do_not_see_each_other,
            faults::a_stage_that_restarted_serves_the_next_request,
        ],
    ),
    (
        "B13: either side restarts",
        &[
            faults::a_stage_that_restarted_serves_the_next_request,
            an_output_pod_that_restarts_finds_its_stages,
            store::a_session_saved_under_one_split_goes_on_under_any_other_and_after_a_restart,
        ],
    ),
    (
        "B16: a dead worker looks alive",
        &[
            drain::a_draining_stage_takes_no_new_session_and_says_so,
            a_dead_stage_is_seen_without_a_request,
        ],
    ),
];

#[test]
fn every_row_has_its_tests() {
    let of = |start: &str| ROWS.iter().filter(|(row, _)| row.starts_with(start)).count();
    assert_eq!((of("June 12"), of("gap: ")), (1, 14));
    // 14 and 15 are about recreated groups and image pulls: the operator's.
    let complaints = (1..=13).chain([16]);
    complaints.for_each(|row| assert_eq!(of(&format!("B{row}: ")), 1, "B{row}"));
    assert!(ROWS.iter().all(|(_, tests)| !tests.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_replacement_hands_over_nothing_that_it_did_not_compute() {
    let fresh = stage(0, 1);
    let mut client = client(&fresh).await;
    // It knows nothing of the session that its predecessor held.
    refused(
        client.handoff(at("s", 1)).await,
        Code::NotFound,
        "session: expected an open one",
    );
    let opened = terms(&mut client, "s", 2).await;
    let reply = client.open(opened).await.unwrap().into_inner();
    assert_eq!(reply.frontier, 0, "it says where it stands");
    let mut rows = client.handoff(at("s", 2)).await.unwrap().into_inner();
    // Going on in the middle would leave the rows before for others to invent.
    let before = ds4_model::TokenHash::of(&[3, 4, 5, 6]);
    let chunk = TokenChunk {
        session: "s".into(),
        epoch: 2,
        start: 4,
        tokens: (7..11).collect(),
        hash_before: before.value(),
        last: true,
    };
    let sent = client.prefill(tokio_stream::iter([chunk])).await;
    let status = match sent {
        Err(status) => status,
        Ok(_) => loop {
            match rows.message().await {
                Err(status) => break status,
                Ok(frame) => assert!(frame.is_none_or(|frame| !is_rows(&frame)), "rows of nothing"),
            }
        },
    };
    assert!(
        status.message().contains("frontier: expected 0, found 4"),
        "{status}"
    );
}

fn is_rows(frame: &ds4_proto::v1::HandoffFrame) -> bool {
    matches!(frame.frame, Some(ds4_proto::v1::handoff_frame::Frame::Rows(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_turn_stops_decode_on_the_owner() {
    let expected = alone(&prompt(60)).await;
    let (end, before) = (
        expected[4],
        expected.iter().position(|token| *token == expected[4]).unwrap(),
    );
    let stage = stage(0, 1);
    let mut options = strict();
    options.eos = vec![end];
    let engine = engine(2, &[&stage], options).await;
    let mut asked = request(prompt(60));
    asked.ignore_eos = false;
    let (decision, tokens, finish) = finished(engine.generate(asked)).await.unwrap();
    assert_eq!(decision.label(), "disaggregated");
    assert_eq!(
        (tokens.as_slice(), finish.reason),
        (&expected[..before], FinishReason::Stop)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_decode_leaves_nothing() {
    let stage = stage(0, 1);
    let mut options = strict();
    options.kept_budget = 0;
    let engine = engine(2, &[&stage], options).await;
    let mut asked = request(prompt(60));
    asked.max_tokens = 2000;
    let mut leaving = engine.generate(asked);
    while !matches!(leaving.next().await, Some(Event::Token(_))) {}
    drop(leaving);
    soon("the request is over", || engine.status().requests == 0).await;
    assert_eq!(engine.status().cached_sessions, 0);
    assert_eq!(
        ask(&engine, &prompt(60)).await.unwrap().1,
        alone(&prompt(60)).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_cut_short_or_with_more_behind_is_refused() {
    let cases: [fn(&mut BytesMut); 2] = [
        |data| data.truncate(data.len() - 1),
        |data| data.extend_from_slice(&[0]),
    ];
    for change in cases {
        let found = refusal(move || {
            first_of(KvKind::Compressed, move |rows: &mut KvFrame| {
                let mut data = BytesMut::from(&rows.data[..]);
                change(&mut data);
                rows.data = data.freeze();
                rows.crc32c = crc_fast::crc32_iscsi(&rows.data);
            })
        })
        .await;
        assert!(found.contains("compressed") && found.contains("bytes"), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_beyond_the_limit_is_refused() {
    let found = refusal(|| {
        first_of(KvKind::Compressed, |rows: &mut KvFrame| {
            rows.data = vec![0; ds4_proto::MESSAGE_BYTES + 1].into();
        })
    })
    .await;
    assert!(found.contains("too large"), "{found}");
}

/// What is wrong with a route, as the engine says it.
async fn unfit(own: usize, stages: &[&crate::support::Served]) -> String {
    let engine = unconnected(own, stages, strict());
    let waited = engine.route_complete(std::time::Duration::from_secs(1)).await;
    waited.expect_err("no route").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_named_twice_is_no_route() {
    let both = stage(0, 1);
    let found = unfit(2, &[&both, &both]).await;
    assert!(
        found.contains("expected a stage that starts at layer 2, found"),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_with_a_gap_or_an_overlap_name_the_layer() {
    let (first, both, second) = (stage(0, 0), stage(0, 1), stage(1, 1));
    let gap = unfit(2, &[&first]).await;
    assert!(
        gap.contains("starts at layer 1, found the output stage with layers 2"),
        "{gap}"
    );
    let overlap = unfit(2, &[&both, &second]).await;
    assert!(
        overlap.contains("starts at layer 2, found") && overlap.contains("with layers 1:1"),
        "{overlap}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_longer_than_a_stage_holds_is_refused_by_name() {
    let short = StageOptions {
        max_tokens: 100,
        ..StageOptions::default()
    };
    let stage = stage_at("127.0.0.1:0", 0, 1, short);
    let engine = engine(2, &[&stage], strict()).await;
    let error = ask(&engine, &prompt(101)).await.unwrap_err().to_string();
    assert!(error.contains("tokens: expected 1 to 100, found 101"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_that_die_during_decode_are_not_missed() {
    let mut both = stage(0, 1);
    let engine = engine(2, &[&both], strict()).await;
    let mut generation = engine.generate(request(prompt(60)));
    let mut tokens = Vec::new();
    while tokens.is_empty() {
        if let Some(Event::Token(token)) = generation.next().await {
            tokens.push(token);
        }
    }
    both.kill();
    while let Some(event) = generation.next().await {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(tokens, alone(&prompt(60)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_not_there_is_told_from_one_that_was_declined() {
    let mut both = stage(0, 1);
    let options = ds4_runtime::EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    };
    both.kill();
    let wanted = unconnected(2, &[&both], options);
    let (decision, _) = ask(&wanted, &prompt(40)).await.unwrap();
    assert_eq!(decision.label(), "recomputed");
    assert!(decision.to_string().contains("not reachable"), "{decision}");
}

/// The deadline is twenty seconds; a stage that says that it failed, or is gone, is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_fails_is_heard_before_any_deadline() {
    let change: Change<KvFrame> = |rows| rows.crc32c ^= 1;
    let started = std::time::Instant::now();
    let found = refusal(move || first_of(KvKind::Window, change)).await;
    assert!(found.contains("KV crc32c"), "{found}");
    assert!(
        started.elapsed() < strict().handoff_timeout,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_pod_that_restarts_finds_its_stages() {
    let (first, second) = (stage(0, 0), stage(1, 1));
    let before = engine(2, &[&first, &second], strict()).await;
    let expected = ask(&before, &prompt(60)).await.unwrap();
    drop(before);
    // Epochs begin again with the process; sessions have other names.
    let after = engine(2, &[&first, &second], strict()).await;
    assert_eq!(
        answer(after.generate(request(prompt(60)))).await.unwrap(),
        expected
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_stage_is_seen_without_a_request() {
    let (mut first, second) = (stage(0, 0), stage(1, 1));
    let engine: Arc<_> = engine(2, &[&first, &second], strict()).await;
    first.kill();
    // Asked at intervals of five seconds at most.
    let gone = async {
        while !matches!(engine.status().route, RouteState::Incomplete { .. }) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let seen = tokio::time::timeout(std::time::Duration::from_secs(60), gone).await;
    seen.expect("the route is known to be broken");
}
