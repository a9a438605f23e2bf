//! The same prompts as DeepSeek V4's own encoding (`encoding/make_vectors.py`).

use ds4_tokenizer::chat::{Chat, Message, Thinking, ToolCall};
use ds4_tokenizer::json::Json;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    tools: Vec<Json>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Given>,
    tools: bool,
    schema: Option<Json>,
    thinking: String,
    prompt: String,
}

#[derive(Deserialize)]
struct Given {
    role: String,
    content: String,
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Vec<Json>,
    tool_call_id: Option<String>,
}

fn call(call: &Json) -> ToolCall {
    let text = |json: Option<&Json>| json.and_then(Json::as_str).expect("text").to_owned();
    let function = call.get("function").expect("a function");
    ToolCall {
        id: text(call.get("id")),
        name: text(function.get("name")),
        arguments: text(function.get("arguments")),
    }
}

fn message(given: &Given) -> Message {
    let content = given.content.clone();
    match given.role.as_str() {
        "system" => Message::System(content),
        "user" => Message::User(content),
        "tool" => Message::ToolResult {
            call: given.tool_call_id.clone().expect("an id"),
            content,
        },
        _ => Message::Assistant {
            reasoning: given.reasoning_content.clone(),
            content,
            calls: given.tool_calls.iter().map(call).collect(),
        },
    }
}

#[test]
fn every_chat_has_the_prompt_of_the_models_own_encoding() {
    let vectors: Vectors = serde_json::from_str(include_str!("encoding/vectors.json")).expect("vectors");
    assert!(vectors.cases.len() >= 60);
    for case in vectors.cases {
        let thinking = match case.thinking.as_str() {
            "off" => Thinking::Off,
            "high" => Thinking::High,
            _ => Thinking::Max,
        };
        let chat = Chat {
            messages: case.messages.iter().map(message).collect(),
            tools: if case.tools {
                vectors.tools.clone()
            } else {
                Vec::new()
            },
            schema: case.schema,
            thinking,
            continues: false,
        };
        assert_eq!(chat.shown(), case.prompt);
    }
}
