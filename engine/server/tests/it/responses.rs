//! OpenAI's responses.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{MODEL, get, named, post, ready};

fn request(changes: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_output_tokens": 16, "temperature": 0, "input": "the cat that is on the mat"});
    body.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    body
}

/// Without what differs from one response to the next.
fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            let changing = [
                "id",
                "created_at",
                "call_id",
                "cached_tokens",
                "cache_write_tokens",
            ];
            fields.retain(|key, _| !changing.contains(&key.as_str()));
            fields.values_mut().for_each(|field| *field = plain(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_whole_response() {
    let app = ready(&[]);
    let asked = json!({"instructions": "be brief", "top_logprobs": 1, "metadata": {"a": "b"}});
    let whole = post(&app, "/v1/responses", &request(asked.clone())).await;
    assert_eq!(whole.status, StatusCode::OK, "{}", whole.text);
    let whole = whole.json();
    assert_eq!(
        (&whole["object"], &whole["metadata"], &whole["instructions"]),
        (&json!("response"), &json!({"a": "b"}), &json!("be brief"))
    );
    let mut streaming = asked;
    streaming["stream"] = true.into();
    let streamed = post(&app, "/v1/responses", &request(streaming)).await;
    let events = named(&streamed.text);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert!(
        events
            .iter()
            .enumerate()
            .all(|(i, (name, data))| data["sequence_number"] == i && data["type"] == name.as_str())
    );
    let told: String = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .filter_map(|(_, data)| data["delta"].as_str())
        .collect();
    assert_eq!(told, whole["output"][0]["content"][0]["text"].as_str().unwrap());
    assert_eq!(plain(events.last().unwrap().1["response"].clone()), plain(whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_all_kinds_are_read() {
    let app = ready(&[]);
    let input = json!([
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [{"type": "output_text", "text": "wait", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"a\": 1}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]);
    let answer = post(
        &app,
        "/v1/responses",
        &request(json!({"input": input, "reasoning": {"effort": "low"}})),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.json()["output"][0]["type"], "reasoning");
    assert_eq!(
        (
            &answer.json()["status"],
            &answer.json()["incomplete_details"]["reason"]
        ),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_not_found() {
    let app = ready(&[]);
    let earlier = post(
        &app,
        "/v1/responses",
        &request(json!({"previous_response_id": "resp_1"})),
    )
    .await;
    assert_eq!(
        (earlier.status, &earlier.json()["error"]["code"]),
        (StatusCode::BAD_REQUEST, &json!("previous_response_not_found"))
    );
    assert_eq!(
        get(&app, "/v1/responses/resp_1").await.status,
        StatusCode::NOT_FOUND
    );
    for (changes, param) in [
        (json!({"background": true}), "background"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input"),
        (json!({"tools": [{"type": "file_search"}]}), "tools"),
    ] {
        let answer = post(&app, "/v1/responses", &request(changes)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param))
        );
    }
}
