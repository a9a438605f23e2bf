//! Anthropic's messages.

use ds4_server::DECISION_HEADER;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{MODEL, named, post, question, ready, send};

fn request(changes: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 12, "temperature": 0, "messages": question()});
    body.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    body
}

/// Tokens of the prompt, computed now or earlier.
fn prompt(usage: &Value) -> u64 {
    usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_the_same_whole_and_in_parts() {
    let app = ready(&[]);
    let whole = post(
        &app,
        "/v1/messages",
        &request(json!({"system": [{"type": "text", "text": "be brief"}]})),
    )
    .await;
    assert_eq!(
        (
            whole.status,
            &whole.headers[DECISION_HEADER].to_str().unwrap()[..5]
        ),
        (StatusCode::OK, "local"),
        "{}",
        whole.text
    );
    let whole = whole.json();
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_sequence"]),
        (&json!("message"), &json!("assistant"), &Value::Null)
    );
    let text = whole["content"][0]["text"].as_str().unwrap();
    let count = request(json!({"system": "be brief"}));
    let counted = post(&app, "/v1/messages/count_tokens", &count).await.json();
    assert_eq!(counted["input_tokens"].as_u64(), Some(prompt(&whole["usage"])));
    let streamed = post(
        &app,
        "/v1/messages",
        &request(json!({"system": "be brief", "stream": true})),
    )
    .await;
    let events = named(&streamed.text);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(
        names[names.len() - 3..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    let told: String = events
        .iter()
        .filter_map(|(_, data)| data["delta"]["text"].as_str())
        .collect();
    assert_eq!(told, text);
    let delta = &events[events.len() - 2].1;
    assert_eq!(
        (&delta["delta"]["stop_reason"], prompt(&delta["usage"])),
        (&whole["stop_reason"], prompt(&whole["usage"]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn thinking_and_stop_sequences_have_their_places() {
    let app = ready(&[]);
    let thinking = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100});
    let whole = post(&app, "/v1/messages", &request(thinking)).await.json();
    // A random model may end its turn while it reasons.
    assert_eq!(whole["content"][0]["type"], "thinking", "{whole}");
    let plain = post(&app, "/v1/messages", &request(json!({}))).await.json();
    let text = plain["content"][0]["text"].as_str().unwrap().to_owned();
    let middle = text.chars().nth(text.chars().count() / 2).unwrap().to_string();
    let stopped = post(
        &app,
        "/v1/messages",
        &request(json!({"stop_sequences": [middle]})),
    )
    .await
    .json();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(middle))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_message_of_the_assistant_is_continued() {
    let app = ready(&[]);
    let whole = post(&app, "/v1/messages", &request(json!({}))).await.json();
    let text = whole["content"][0]["text"].as_str().unwrap();
    let cut = text.char_indices().nth(3).unwrap().0;
    let mut messages = question();
    messages
        .as_array_mut()
        .unwrap()
        .push(json!({"role": "assistant", "content": text[..cut]}));
    let rest = post(
        &app,
        "/v1/messages",
        &request(json!({"messages": messages, "max_tokens": 1})),
    )
    .await
    .json();
    assert!(!rest["content"][0]["text"].as_str().unwrap_or("x").is_empty());
    assert!(prompt(&rest["usage"]) > prompt(&whole["usage"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_and_results_go_into_the_prompt() {
    let app = ready(&[]);
    let tools = json!([{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]);
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "wait"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true, "content": [{"type": "text", "text": "down"}]}, {"type": "text", "text": "and?"}]},
    ]);
    let count = async |changes: Value| {
        let answer = post(&app, "/v1/messages/count_tokens", &request(changes)).await;
        answer.json()["input_tokens"].as_u64().expect(&answer.text)
    };
    let with = count(json!({"messages": messages, "tools": tools})).await;
    let none = count(json!({"messages": messages, "tools": tools, "tool_choice": {"type": "none"}})).await;
    assert!(with > none + 300, "{with} {none}");
    let answer = post(
        &app,
        "/v1/messages",
        &request(json!({"messages": messages, "tools": tools})),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_anthropics_shape() {
    let app = ready(&["key"]);
    let ask =
        async |body: Value, key: &str| send(&app, Method::POST, "/v1/messages", key, body.to_string()).await;
    for (changes, kind, status) in [
        (json!({"model": "claude"}), "not_found_error", 404),
        (json!({"max_tokens": 0}), "invalid_request_error", 400),
        (json!({"max_tokens": null}), "invalid_request_error", 400),
        (json!({"messages": []}), "invalid_request_error", 400),
        (json!({"temperature": 1.5}), "invalid_request_error", 400),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 10}}),
            "invalid_request_error",
            400,
        ),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "invalid_request_error",
            400,
        ),
        (json!({"max_tokens": 100_000}), "invalid_request_error", 400),
    ] {
        let answer = ask(request(changes.clone()), "key").await;
        let found = (answer.status.as_u16(), answer.json());
        assert_eq!(
            (found.0, &found.1["type"], &found.1["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{changes}"
        );
    }
    let refused = ask(request(json!({})), "wrong").await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["type"]),
        (StatusCode::UNAUTHORIZED, &json!("authentication_error"))
    );
}
