//! Sound requests with something put in, taken out or exchanged at random: an answer or a refusal in the API's shape, never a failure of the server.

use std::sync::{Arc, LazyLock};

use ds4_server::App;
use http::Method;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::support::{MODEL, ready, send};

static SERVER: LazyLock<(tokio::runtime::Runtime, Arc<App>)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let app = runtime.block_on(async { ready(&[]) });
    (runtime, app)
});

/// A rich, sound request for every route.
fn sound() -> Vec<(&'static str, Value)> {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    let function = json!({"name": "f", "description": "d", "parameters": parameters});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    vec![
        (
            "/v1/chat/completions",
            json!({
                "model": MODEL, "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 1, "stream": false, "user": "u",
                "logprobs": true, "top_logprobs": 1, "logit_bias": {"5": 1}, "frequency_penalty": 0.1, "presence_penalty": 0.1,
                "tools": [{"type": "function", "function": function}], "tool_choice": "auto", "reasoning_effort": "high", "service_tier": "auto",
                "messages": [
                    {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "r"},
                ],
            }),
        ),
        (
            "/v1/completions",
            json!({"model": MODEL, "prompt": ["a b"], "max_tokens": 2, "logprobs": 1, "stop": "x", "echo": false, "best_of": 1}),
        ),
        (
            "/v1/responses",
            json!({
                "model": MODEL, "max_output_tokens": 2, "instructions": "i", "reasoning": {"effort": "low"}, "metadata": {"k": "v"},
                "tools": [{"type": "function", "name": "f", "parameters": parameters, "strict": true}], "text": {"format": {"type": "text"}},
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "r"},
                ],
            }),
        ),
        (
            "/v1/messages",
            json!({
                "model": MODEL, "max_tokens": 2, "system": [{"type": "text", "text": "s"}], "stop_sequences": ["x"], "metadata": {"user_id": "u"},
                "tools": [{"name": "f", "input_schema": parameters}], "tool_choice": {"type": "auto"},
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
                ],
            }),
        ),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3..300_i32).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![
            Just("auto"),
            Just("text"),
            Just("user"),
            Just("function"),
            Just("json_schema"),
            Just("")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,8}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every place in a value, as the steps to it.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(i, item)| places(item, &format!("{at}/{i}"), all)),
        Value::Object(members) => members
            .iter()
            .for_each(|(name, item)| places(item, &format!("{at}/{name}"), all)),
        _ => {}
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(Value),
    Remove,
    Add(String, Value),
    Twice,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => value().prop_map(Change::Put),
        2 => Just(Change::Remove),
        1 => ("[a-z_]{1,12}", value()).prop_map(|(name, value)| Change::Add(name, value)),
        1 => Just(Change::Twice),
    ]
}

fn apply(body: &mut Value, place: &str, change: &Change) {
    match change {
        Change::Put(value) => {
            if let Some(target) = body.pointer_mut(place) {
                target.clone_from(value);
            }
        }
        Change::Remove => {
            let (parent, name) = place.rsplit_once('/').unwrap_or(("", ""));
            match body.pointer_mut(parent) {
                Some(Value::Object(members)) => drop(members.remove(name)),
                Some(Value::Array(items)) => drop(
                    name.parse()
                        .ok()
                        .filter(|i| *i < items.len())
                        .map(|i: usize| items.remove(i)),
                ),
                _ => {}
            }
        }
        Change::Add(name, value) => {
            if let Some(members) = body.pointer_mut(place).and_then(Value::as_object_mut) {
                members.insert(name.clone(), value.clone());
            }
        }
        Change::Twice => {
            if let Some(items) = body.pointer_mut(place).and_then(Value::as_array_mut) {
                items.extend_from_within(..);
            }
        }
    }
}

/// What must stay small, whatever was changed: the test is of parsers, not of the model.
fn limit(body: &mut Value) {
    let short = |members: &mut Map<String, Value>, name: &str| {
        if members
            .get(name)
            .and_then(Value::as_u64)
            .is_some_and(|tokens| tokens > 4)
            || members.get(name).is_none_or(Value::is_null)
        {
            members.insert(name.to_owned(), json!(2));
        }
    };
    let Some(members) = body.as_object_mut() else {
        return;
    };
    if members.get("n").and_then(Value::as_u64).is_some_and(|n| n > 3) {
        members.remove("n");
    }
    for name in ["max_tokens", "max_output_tokens", "max_completion_tokens"] {
        if members.contains_key(name) || name == "max_tokens" {
            short(members, name);
        }
    }
    members.entry("max_output_tokens").or_insert(json!(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_changed_request_is_answered_or_refused_in_the_apis_shape(
        route in 0..4_usize, changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 1..4), stream in any::<bool>(),
    ) {
        let (path, mut body) = sound().swap_remove(route);
        for (place, change) in &changes {
            let mut all = Vec::new();
            places(&body, "", &mut all);
            apply(&mut body, &all[place.index(all.len())], change);
        }
        limit(&mut body);
        if stream && let Some(members) = body.as_object_mut() {
            members.insert("stream".into(), json!(true));
        }
        let (runtime, app) = &*SERVER;
        let answer = runtime.block_on(send(app, Method::POST, path, "", body.to_string()));
        let status = answer.status.as_u16();
        prop_assert!(status == 200 || (400..500).contains(&status), "{}: {}: {}\n{}", path, status, answer.text, body);
        if status != 200 {
            let error = answer.json();
            prop_assert!(error["error"]["message"].is_string(), "{}", error);
            prop_assert_eq!(error["type"] == "error", path == "/v1/messages", "{}", error);
        } else {
            prop_assert!(!answer.text.contains("\"server_error\"") && !answer.text.contains("api_error"), "{}\n{}", answer.text, body);
        }
    }

    #[test]
    fn bytes_that_are_no_json_are_refused(route in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (path, _) = sound().swap_remove(route);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (runtime, app) = &*SERVER;
        let answer = runtime.block_on(send(app, Method::POST, path, "", text));
        prop_assert!(answer.status.is_client_error(), "{}", answer.text);
    }
}
