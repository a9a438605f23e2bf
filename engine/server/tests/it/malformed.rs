//! Bodies that are no requests: each ends in 4xx with the error shape of its API, and the server goes on.

use std::sync::Arc;

use axum::body::Body;
use ds4_server::{App, router};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{MODEL, chat, get, ready};

const ROUTES: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
];

/// A sound request for each route; whatever is done to it below breaks it.
fn sound(route: &str) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    match route {
        "/v1/completions" => json!({"model": MODEL, "max_tokens": 1, "prompt": "hello"}),
        "/v1/responses" => json!({"model": MODEL, "max_output_tokens": 1, "input": "hello"}),
        _ => json!({"model": MODEL, "max_tokens": 1, "messages": messages}),
    }
}

/// The field with what is to be answered.
fn content(route: &str) -> &'static str {
    match route {
        "/v1/completions" => "prompt",
        "/v1/responses" => "input",
        _ => "messages",
    }
}

/// Bytes that are no JSON, or no text at all.
fn broken(route: &str) -> Vec<Vec<u8>> {
    let text = sound(route).to_string();
    // Every cut of a sound body, and a stray byte at some places.
    let mut all: Vec<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|end| text.as_bytes()[..end].to_vec())
        .collect();
    for (at, byte) in [(1, 0xff), (5, 0x00), (12, 0xc3), (20, 0xed), (30, 0x01)] {
        let mut bytes = text.clone().into_bytes();
        bytes.insert(at, byte);
        all.push(bytes);
    }
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = |open: &str, close: &str, n: usize| {
        format!(
            "{{\"model\": \"{MODEL}\", \"{}\": {}1{}}}",
            content(route),
            open.repeat(n),
            close.repeat(n)
        )
    };
    all.extend([
        utf16,
        [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat(),
        format!("{text} {text}").into_bytes(),
        format!("{text},").into_bytes(),
    ]);
    all.extend([200, 5000, 100_000].map(|n| deep("[", "]", n).into_bytes()));
    all.extend([200, 5000].map(|n| deep("{\"a\":", "}", n).into_bytes()));
    let literals = [
        "null",
        "true",
        "[]",
        "\"text\"",
        "17",
        "{}",
        "NaN",
        "Infinity",
        "{\"model\": 1e99999}",
        "'x'",
        "{'model': 'micro'}",
        "// comment",
    ];
    all.extend(literals.map(|text| text.as_bytes().to_vec()));
    let lone = text.replacen("hello", "\\ud800", 1);
    all.push(lone.into_bytes());
    all
}

/// Values of the wrong kind or out of range, for fields of all routes.
fn wrong(route: &str) -> Vec<Value> {
    let anthropic = route.starts_with("/v1/messages");
    let limit = if route == "/v1/responses" {
        "max_output_tokens"
    } else {
        "max_tokens"
    };
    let object = json!({"a": 1});
    let mut cases: Vec<(&str, Value)> = Vec::new();
    let mut add =
        |name: &'static str, values: Vec<Value>| cases.extend(values.into_iter().map(|value| (name, value)));
    add(
        "model",
        vec![
            json!(1),
            json!(null),
            json!([]),
            object.clone(),
            json!(true),
            json!("other"),
            json!(""),
        ],
    );
    add(
        content(route),
        vec![
            json!(1),
            json!(null),
            object.clone(),
            json!(true),
            json!([]),
            json!([null]),
            json!([[[]]]),
            json!([1.5]),
            json!([{}]),
            json!([-1]),
        ],
    );
    if route != "/v1/messages/count_tokens" {
        add(
            limit,
            vec![
                json!(-1),
                json!(0),
                json!(1.5),
                json!("1"),
                json!([]),
                json!(4_294_967_296_u64),
                json!(1e300),
                json!(true),
                object.clone(),
            ],
        );
        add(
            "temperature",
            vec![
                json!(-0.1),
                json!(2.1),
                json!("warm"),
                json!([]),
                json!(1e308),
                json!(true),
                object.clone(),
            ],
        );
        add(
            "top_p",
            vec![json!(-1), json!(1.01), json!("x"), json!({}), json!(true)],
        );
        add("stream", vec![json!("yes"), json!(1), json!([]), object.clone()]);
    }
    if matches!(route, "/v1/chat/completions" | "/v1/completions") {
        add(
            "n",
            vec![json!(0), json!(-1), json!(129), json!("2"), json!(1.5), json!([])],
        );
        add(
            "stop",
            vec![
                json!(1),
                json!([1]),
                json!([null]),
                object.clone(),
                json!(vec!["x"; 17]),
            ],
        );
        add("seed", vec![json!("x"), json!(1.5), json!(u64::MAX), json!([])]);
        add(
            "logit_bias",
            vec![
                json!([]),
                json!({"x": 1}),
                json!({"-1": 1}),
                json!({"1": "x"}),
                json!({"1": 101}),
                json!({"99999999": 1}),
            ],
        );
        add("frequency_penalty", vec![json!(2.5), json!(-3), json!("x")]);
        add("presence_penalty", vec![json!(2.5), json!([])]);
        add("logprobs", vec![json!("x"), json!(-1), json!([]), object.clone()]);
        add("user", vec![json!(1), json!([])]);
    }
    if route == "/v1/chat/completions" {
        let message = |message: Value| json!([message]);
        add(
            "messages",
            vec![
                message(json!({"role": "robot", "content": "x"})),
                message(json!({"content": "x"})),
                message(json!({"role": "user", "content": 1})),
                message(json!({"role": "user", "content": [{"text": "x"}]})),
                message(json!({"role": "user", "content": [{"type": "text"}]})),
                message(json!({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]})),
                message(json!({"role": "tool", "content": "x"})),
                message(json!({"role": "assistant", "tool_calls": [{"id": "x"}]})),
                message(json!({"role": "assistant", "tool_calls": {"id": "x"}})),
            ],
        );
        add(
            "tools",
            vec![
                json!("x"),
                json!([{}]),
                json!([{"type": "function"}]),
                json!([{"type": "function", "function": {"name": ""}}]),
                json!([{"type": "function", "function": {"name": "a", "parameters": []}}]),
            ],
        );
        add(
            "tool_choice",
            vec![
                json!("maybe"),
                json!(1),
                json!({"type": "function"}),
                json!("required"),
                json!({"type": "function", "function": {"name": "none"}}),
            ],
        );
        add(
            "response_format",
            vec![
                json!("json"),
                json!({}),
                json!({"type": "xml"}),
                json!({"type": "json_schema"}),
                json!({"type": "json_schema", "json_schema": {"schema": 1}}),
                json!({"type": "json_schema", "json_schema": {"schema": {"type": "sideways"}}}),
                json!({"type": "json_schema", "json_schema": {"schema": {"type": "object", "not": {}}}}),
            ],
        );
        add("top_logprobs", vec![json!(21), json!(-1), json!(1)]);
        add("reasoning_effort", vec![json!("more"), json!(1), json!([])]);
        add(
            "thinking",
            vec![json!("on"), json!({}), json!({"type": "deeply"})],
        );
    }
    if anthropic {
        add(
            "system",
            vec![json!(1), json!([{"type": "image"}]), object.clone()],
        );
        add(
            "tools",
            vec![
                json!([{}]),
                json!([{"name": "x y", "input_schema": {}}]),
                json!([{"type": "bash_20250124", "name": "bash"}]),
                json!({}),
            ],
        );
        add(
            "tool_choice",
            vec![
                json!("auto"),
                json!({"type": "tool"}),
                json!({"type": "any"}),
                json!({"type": "tool", "name": "x"}),
            ],
        );
        add(
            "thinking",
            vec![
                json!({"type": "enabled"}),
                json!({"type": "enabled", "budget_tokens": 1}),
                json!({"type": "x"}),
                json!(true),
            ],
        );
        add(
            "messages",
            vec![
                json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]),
                json!([{"role": "system", "content": "x"}]),
                json!([{"role": "user", "content": [{"type": "tool_result"}]}]),
                json!([{"role": "assistant", "content": [{"type": "tool_use", "name": "x"}]}]),
            ],
        );
    }
    if route == "/v1/responses" {
        add(
            "input",
            vec![
                json!([{"type": "function_call"}]),
                json!([{"type": "function_call_output", "call_id": "x"}]),
                json!([{"type": "message", "role": "user"}]),
                json!([{"type": "computer_call"}]),
                json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
            ],
        );
        add("previous_response_id", vec![json!("resp_x"), json!(1)]);
        add(
            "text",
            vec![
                json!("x"),
                json!({"format": {"type": "yaml"}}),
                json!({"format": {"type": "json_schema", "name": "x"}}),
            ],
        );
        add(
            "tools",
            vec![json!([{"type": "mcp"}]), json!([{"type": "function"}])],
        );
        add("background", vec![json!(true), json!("x")]);
    }
    let change = |(name, value): (&str, Value)| {
        let mut body = sound(route);
        body[name] = value;
        body
    };
    cases.into_iter().map(change).collect()
}

async fn refused(app: &Arc<App>, route: &str, body: Vec<u8>) {
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    let request = Request::builder()
        .method(Method::POST)
        .uri(route)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    let response = router(Arc::clone(app)).oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    assert!(status.is_client_error(), "{route}: {status}: {shown}");
    let error: Value =
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{route}: {error}: {shown}"));
    assert!(
        error["error"]["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{route}: {shown}: {error}"
    );
    assert!(error["error"]["type"].is_string(), "{route}: {shown}: {error}");
    assert_eq!(
        error["type"] == "error",
        route.starts_with("/v1/messages"),
        "{route}: {shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_five_hundred_malformed_bodies_are_refused_in_the_apis_shape() {
    let app = ready(&[]);
    let mut count = 0;
    for route in ROUTES {
        let bodies = broken(route)
            .into_iter()
            .chain(wrong(route).into_iter().map(|body| body.to_string().into_bytes()));
        for body in bodies {
            refused(&app, route, body).await;
            count += 1;
        }
    }
    assert!(count >= 500, "{count}");
    assert_eq!(
        chat(&app, json!({"max_tokens": 1})).await.status,
        StatusCode::OK,
        "it goes on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_too_large() {
    let app = ready(&[]);
    refused(&app, "/v1/messages", vec![b' '; 17 << 20]).await;
    assert_eq!(get(&app, "/v1/messages/other").await.json()["type"], "error");
}
