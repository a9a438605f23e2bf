//! Answers that keep to a form, through the whole engine.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{MODEL, chat, named, post, question, ready};

fn weather() -> Value {
    let parameters = json!({
        "type": "object", "required": ["city", "days"], "additionalProperties": false,
        "properties": {"city": {"type": "string", "enum": ["Rome", "Catania"]}, "days": {"type": "integer", "minimum": 1, "maximum": 99}, "hot": {"type": "boolean"}},
    });
    json!({"name": "weather", "description": "of a city", "parameters": parameters})
}

fn is_weather(arguments: &str) -> bool {
    let value: Value = serde_json::from_str(arguments).expect(arguments);
    ["Rome", "Catania"].contains(&value["city"].as_str().unwrap_or_default())
        && value["days"]
            .as_u64()
            .is_some_and(|days| (1..100).contains(&days))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_call_is_a_call_in_every_dialect() {
    let app = ready(&[]);
    let tools = json!([{"type": "function", "function": weather()}]);
    let forced = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 400, "temperature": 1, "seed": 3});
    let whole = chat(&app, forced.clone()).await;
    assert_eq!(whole.status, StatusCode::OK, "{}", whole.text);
    let choice = whole.json()["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (
            &choice["finish_reason"],
            &choice["message"]["content"],
            &call["function"]["name"]
        ),
        (&json!("tool_calls"), &Value::Null, &json!("weather"))
    );
    assert!(is_weather(call["function"]["arguments"].as_str().unwrap()));
    let mut streaming = forced;
    streaming["stream"] = true.into();
    let parts = chat(&app, streaming).await.parts();
    let told: String = parts
        .iter()
        .filter_map(|part| part["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    assert_eq!(told, call["function"]["arguments"].as_str().unwrap());

    let tool = json!({"name": "weather", "input_schema": weather()["parameters"]});
    let body = json!({"model": MODEL, "max_tokens": 400, "messages": question(), "tools": [tool], "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": true}, "stream": true});
    let events = named(&post(&app, "/v1/messages", &body).await.text);
    let start = events
        .iter()
        .find(|(name, _)| name == "content_block_start")
        .unwrap();
    assert_eq!(
        (
            &start.1["content_block"]["type"],
            &start.1["content_block"]["name"]
        ),
        (&json!("tool_use"), &json!("weather"))
    );
    let input: String = events
        .iter()
        .filter_map(|(_, data)| data["delta"]["partial_json"].as_str())
        .take_while(|part| !part.is_empty())
        .collect();
    assert!(input.starts_with("{\"city\": \""), "{input}");
    assert_eq!(events[events.len() - 2].1["delta"]["stop_reason"], "tool_use");

    let mut tool = weather();
    tool["type"] = "function".into();
    let body = json!({"model": MODEL, "max_output_tokens": 400, "input": "q", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false});
    let response = post(&app, "/v1/responses", &body).await.json();
    let items = response["output"].as_array().unwrap();
    assert!(
        items
            .iter()
            .all(|item| item["type"] == "function_call" && is_weather(item["arguments"].as_str().unwrap())),
        "{response}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_follows_its_schema_also_after_reasoning() {
    let app = ready(&[]);
    let schema = json!({"type": "object", "required": ["z", "a"], "additionalProperties": false, "properties": {"z": {"type": "integer", "minimum": 0, "maximum": 9}, "a": {"enum": ["x", "y"]}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    for thinking in [
        json!({"type": "disabled"}),
        json!({"type": "enabled", "budget_tokens": 8}),
    ] {
        let asked =
            json!({"response_format": format, "thinking": thinking, "temperature": 1, "max_tokens": 200});
        let answer = chat(&app, asked).await;
        let content = answer.json()["choices"][0]["message"]["content"]
            .as_str()
            .expect(&answer.text)
            .to_owned();
        let value: Value = serde_json::from_str(&content).expect(&content);
        assert!(
            value["z"].as_u64().is_some_and(|z| z < 10) && ["x", "y"].contains(&value["a"].as_str().unwrap()),
            "{content}"
        );
        assert!(content.starts_with("{\"z\": "), "{content}");
    }
    let format = json!({"format": {"type": "json_schema", "name": "answer", "schema": schema}});
    let body = json!({"model": MODEL, "max_output_tokens": 100, "input": "q", "text": format});
    let response = post(&app, "/v1/responses", &body).await.json();
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}");
}
