//! What clients of responses get: items, one after the other, and an event for each step.

use serde_json::{Map, Value, json};

use super::score;
use crate::dialect::{Dialect, Frame, Score, Usage, Whole, id};
use crate::error::{ApiError, Shape};
use crate::turn::{Finish, Part};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

/// The item that is being written.
#[derive(Clone, Debug)]
struct Open {
    kind: Kind,
    id: String,
    call_id: String,
    name: String,
    text: String,
    scores: Vec<Value>,
}

/// One response.
pub(crate) struct Responses {
    id: String,
    created: u64,
    model: String,
    /// Fields of the request that the response repeats.
    echo: Map<String, Value>,
    logprobs: bool,
    sequence: u64,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    finish: Finish,
}

impl Responses {
    pub(crate) fn new(model: &str, echo: Map<String, Value>, logprobs: bool) -> Self {
        Self {
            id: id("resp_"),
            created: crate::app::now(),
            model: model.to_owned(),
            echo,
            logprobs,
            sequence: 0,
            output: Vec::new(),
            open: None,
            finish: Finish::Stop,
        }
    }

    fn response(&self, status: &str, usage: Option<Usage>, error: Option<&ApiError>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let error = error.map(|error| json!({"code": "server_error", "message": error.message}));
        let mut value = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "output": self.output, "error": error, "incomplete_details": incomplete, "usage": usage.map(counts),
            "background": false, "instructions": null, "max_output_tokens": null, "metadata": {}, "parallel_tool_calls": true,
            "previous_response_id": null, "reasoning": {"effort": null, "summary": null}, "temperature": 1.0,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled",
        });
        if let Some(fields) = value.as_object_mut() {
            fields.extend(self.echo.clone());
        }
        value
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Frame {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Frame::Event(Some(name), data)
    }

    /// An event about the open item.
    fn item_event(&mut self, name: &'static str, mut data: Value) -> Frame {
        let item = self.open.as_ref().map(|open| open.id.clone());
        data["output_index"] = self.output.len().into();
        data["item_id"] = item.into();
        self.event(name, data)
    }

    fn start(&mut self, kind: Kind, name: String) -> Vec<Frame> {
        let mut frames = self.stop("completed");
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call => "fc_",
        };
        let open = Open {
            kind,
            id: id(prefix),
            call_id: id("call_"),
            name,
            text: String::new(),
            scores: Vec::new(),
        };
        let mut item = open.item("in_progress");
        if kind != Kind::Call {
            item["content"] = json!([]);
        }
        let part = open.part();
        self.open = Some(open);
        let index = self.output.len();
        frames.push(self.event(
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
        ));
        if kind != Kind::Call {
            frames.push(self.item_event(
                "response.content_part.added",
                json!({"content_index": 0, "part": part}),
            ));
        }
        frames
    }

    fn text(&mut self, kind: Kind, text: &str, scores: &[Score]) -> Vec<Frame> {
        let open = self.open.as_ref().map(|open| open.kind);
        let mut frames = if open == Some(kind) {
            Vec::new()
        } else {
            self.start(kind, String::new())
        };
        let scores: Vec<Value> = scores.iter().map(score).collect();
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            open.scores.extend(scores.clone());
        }
        frames.push(match kind {
            Kind::Reasoning => self.item_event(
                "response.reasoning_text.delta",
                json!({"content_index": 0, "delta": text}),
            ),
            Kind::Message => self.item_event(
                "response.output_text.delta",
                json!({"content_index": 0, "delta": text, "logprobs": scores}),
            ),
            Kind::Call => self.item_event("response.function_call_arguments.delta", json!({"delta": text})),
        });
        frames
    }

    /// Ends the open item.
    fn stop(&mut self, status: &str) -> Vec<Frame> {
        let Some(open) = self.open.clone() else {
            return Vec::new();
        };
        let (text, part) = (open.text.clone(), open.part());
        let mut frames = match open.kind {
            Kind::Reasoning => vec![self.item_event(
                "response.reasoning_text.done",
                json!({"content_index": 0, "text": text}),
            )],
            Kind::Message => {
                vec![self.item_event(
                    "response.output_text.done",
                    json!({"content_index": 0, "text": text, "logprobs": open.scores}),
                )]
            }
            Kind::Call => {
                vec![self.item_event(
                    "response.function_call_arguments.done",
                    json!({"arguments": text}),
                )]
            }
        };
        if open.kind != Kind::Call {
            frames.push(self.item_event(
                "response.content_part.done",
                json!({"content_index": 0, "part": part}),
            ));
        }
        let (item, index) = (open.item(status), self.output.len());
        frames.push(self.event(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        ));
        self.output.push(item);
        self.open = None;
        frames
    }

    const fn status(&self) -> &'static str {
        if matches!(self.finish, Finish::Length) {
            "incomplete"
        } else {
            "completed"
        }
    }
}

impl Open {
    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            Kind::Message | Kind::Call => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.scores})
            }
        }
    }

    fn item(&self, status: &str) -> Value {
        match self.kind {
            Kind::Reasoning => {
                json!({"id": self.id, "type": "reasoning", "summary": [], "content": [self.part()], "status": status})
            }
            Kind::Message => {
                json!({"id": self.id, "type": "message", "role": "assistant", "status": status, "content": [self.part()]})
            }
            Kind::Call => json!({
                "id": self.id, "type": "function_call", "call_id": self.call_id, "name": self.name, "arguments": self.text, "status": status,
            }),
        }
    }
}

fn counts(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.prompt.saturating_sub(usage.cached)},
        "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": usage.reasoned},
        "total_tokens": usage.prompt + usage.completion,
    })
}

impl Dialect for Responses {
    fn shape(&self) -> Shape {
        Shape::OpenAi
    }

    fn begin(&mut self, _usage: Usage) -> Vec<Frame> {
        let response = json!({"response": self.response("in_progress", None, None)});
        vec![
            self.event("response.created", response.clone()),
            self.event("response.in_progress", response),
        ]
    }

    fn part(&mut self, _choice: usize, part: Part, scores: Vec<Score>) -> Vec<Frame> {
        match part {
            Part::Reasoning(text) => self.text(Kind::Reasoning, &text, &[]),
            Part::Text(text) => self.text(Kind::Message, &text, &scores),
            Part::Call { name } => self.start(Kind::Call, name),
            Part::Arguments(text) => self.text(Kind::Call, &text, &[]),
            Part::CallEnd => self.stop("completed"),
        }
    }

    fn end_choice(&mut self, _choice: usize, finish: &Finish, scores: Vec<Score>) -> Vec<Frame> {
        if let Some(open) = self.open.as_mut().filter(|_| self.logprobs) {
            open.scores.extend(scores.iter().map(score));
        }
        self.finish = finish.clone();
        self.stop(self.status())
    }

    fn end(&mut self, usage: Usage) -> Vec<Frame> {
        let status = self.status();
        let response = json!({"response": self.response(status, Some(usage), None)});
        let name = if status == "incomplete" {
            "response.incomplete"
        } else {
            "response.completed"
        };
        vec![self.event(name, response)]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        let response = json!({"response": self.response("failed", None, Some(error))});
        vec![self.event("response.failed", response)]
    }

    /// The same items as in a stream.
    fn whole(&mut self, answers: Vec<Whole>, usage: Usage) -> Value {
        let answer = answers.into_iter().next().unwrap_or_default();
        let mut scores = answer.scores;
        for item in answer.items {
            let parts = match item {
                crate::dialect::Item::Reasoning(text) => vec![Part::Reasoning(text)],
                crate::dialect::Item::Text(text) => vec![Part::Text(text)],
                crate::dialect::Item::Call { name, arguments } => {
                    vec![Part::Call { name }, Part::Arguments(arguments), Part::CallEnd]
                }
            };
            for part in parts {
                let own = if matches!(part, Part::Text(_)) {
                    std::mem::take(&mut scores)
                } else {
                    Vec::new()
                };
                self.part(0, part, own);
            }
        }
        self.end_choice(0, &answer.finish, Vec::new());
        let status = self.status();
        self.response(status, Some(usage), None)
    }
}
