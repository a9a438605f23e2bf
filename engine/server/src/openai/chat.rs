//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::{chat_request, reason, score};
use crate::app::App;
use crate::ask::body;
use crate::dialect::{Dialect, Frame, Item, Score, Usage, Whole, id};
use crate::error::Shape;
use crate::respond::Call;
use crate::turn::{Finish, Part};

pub(crate) async fn post(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let call = Call {
        app: &app,
        headers: &headers,
        route: "POST /v1/chat/completions",
    };
    let answered = call.respond(Shape::OpenAi, |loaded| {
        let (ask, usage) = chat_request::understand(&body::read(body)?, &app.options.model, loaded)?;
        let chat = ChatCompletion::new(&app, ask.choices, ask.wishes.logprobs.is_some(), usage);
        Ok((ask, chat))
    });
    answered.await
}

/// Answers of chat completions.
pub(crate) struct ChatCompletion {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    /// The client wants the counts at the end of a stream.
    usage: bool,
    /// Calls begun, for each answer.
    calls: Vec<usize>,
}

impl ChatCompletion {
    pub(crate) fn new(app: &App, choices: usize, logprobs: bool, usage: bool) -> Self {
        Self {
            id: id("chatcmpl-"),
            created: crate::app::now(),
            model: app.options.model.clone(),
            logprobs,
            usage,
            calls: vec![0; choices],
        }
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": crate::FINGERPRINT, "choices": choices,
        })
    }

    fn scores(&self, scores: &[Score]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        json!({"content": scores.iter().map(score).collect::<Vec<_>>(), "refusal": null})
    }

    fn chunk(&self, choice: usize, delta: &Value, scores: &[Score], finish: Option<&str>) -> Frame {
        let logprobs = if scores.is_empty() {
            Value::Null
        } else {
            self.scores(scores)
        };
        let choice =
            json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        let mut value = self.envelope("chat.completion.chunk", choice);
        if self.usage {
            value["usage"] = Value::Null;
        }
        Frame::Event(None, value)
    }

    fn message(&self, answer: &Whole) -> Value {
        let (text, reasoning) = (answer.text(false), answer.text(true));
        let call = |item: &Item| match item {
            Item::Call { name, arguments } => Some(
                json!({"id": id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}}),
            ),
            _ => None,
        };
        let calls: Vec<Value> = answer.items.iter().filter_map(call).collect();
        let content = if text.is_empty() && !calls.is_empty() {
            Value::Null
        } else {
            text.into()
        };
        let mut message = Map::from_iter([
            ("role".into(), "assistant".into()),
            ("content".into(), content),
            ("refusal".into(), Value::Null),
        ]);
        if !reasoning.is_empty() {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        message.into()
    }
}

impl Dialect for ChatCompletion {
    fn shape(&self) -> Shape {
        Shape::OpenAi
    }

    fn begin(&mut self, _usage: Usage) -> Vec<Frame> {
        let opening = json!({"role": "assistant", "content": ""});
        (0..self.calls.len())
            .map(|choice| self.chunk(choice, &opening, &[], None))
            .collect()
    }

    fn part(&mut self, choice: usize, part: Part, scores: Vec<Score>) -> Vec<Frame> {
        let delta = match part {
            Part::Text(text) => json!({"content": text}),
            Part::Reasoning(text) => json!({"reasoning_content": text}),
            Part::Call { name } => {
                self.calls[choice] += 1;
                let call = json!({"index": self.calls[choice] - 1, "id": id("call_"), "type": "function", "function": {"name": name, "arguments": ""}});
                json!({"tool_calls": [call]})
            }
            Part::Arguments(text) => {
                json!({"tool_calls": [{"index": self.calls[choice].saturating_sub(1), "function": {"arguments": text}}]})
            }
            Part::CallEnd => return Vec::new(),
        };
        vec![self.chunk(choice, &delta, &scores, None)]
    }

    fn end_choice(&mut self, choice: usize, finish: &Finish, scores: Vec<Score>) -> Vec<Frame> {
        vec![self.chunk(choice, &json!({}), &scores, Some(reason(finish)))]
    }

    fn end(&mut self, usage: Usage) -> Vec<Frame> {
        let mut counts = self.envelope("chat.completion.chunk", json!([]));
        counts["usage"] = super::usage(usage);
        let counts = self.usage.then_some(Frame::Event(None, counts));
        counts.into_iter().chain([Frame::Done]).collect()
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: Usage) -> Value {
        let choice = |(i, answer): (usize, &Whole)| json!({"index": i, "message": self.message(answer), "logprobs": self.scores(&answer.scores), "finish_reason": reason(&answer.finish)});
        let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
        let mut value = self.envelope("chat.completion", choices.into());
        value["usage"] = super::usage(usage);
        value
    }
}
