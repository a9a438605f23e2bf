//! What clients of messages get.

use serde_json::{Value, json};

use crate::app::App;
use crate::dialect::{Dialect, Frame, Item, Score, Usage, Whole, id};
use crate::error::{ApiError, Shape};
use crate::turn::{Finish, Part};

/// Reasoning carries a signature, so that its provider knows it again. This server takes reasoning back as it is given.
const SIGNATURE: &str = "unsigned";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Thinking,
    Text,
    ToolUse,
}

/// One answer. Its blocks come one after the other.
pub(crate) struct Answer {
    id: String,
    model: String,
    /// The open block; its number is one less than the blocks begun.
    open: Option<Block>,
    begun: usize,
    finish: Finish,
}

impl Answer {
    pub(crate) fn new(app: &App) -> Self {
        Self {
            id: id("msg_"),
            model: app.options.model.clone(),
            open: None,
            begun: 0,
            finish: Finish::Stop,
        }
    }

    fn message(&self, content: Vec<Value>, stop: &Value, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": stop["stop_reason"], "stop_sequence": stop["stop_sequence"], "usage": usage,
        })
    }

    fn start(&mut self, block: Block, content: &Value) -> Vec<Frame> {
        let mut frames = self.stop();
        self.open = Some(block);
        self.begun += 1;
        frames.push(event(
            "content_block_start",
            json!({"index": self.begun - 1, "content_block": content}),
        ));
        frames
    }

    fn stop(&mut self) -> Vec<Frame> {
        let Some(block) = self.open.take() else {
            return Vec::new();
        };
        let index = self.begun - 1;
        let signature = json!({"index": index, "delta": {"type": "signature_delta", "signature": SIGNATURE}});
        let signature = (block == Block::Thinking).then(|| event("content_block_delta", signature));
        signature
            .into_iter()
            .chain([event("content_block_stop", json!({"index": index}))])
            .collect()
    }

    fn text(&mut self, block: Block, content: &Value, delta: &Value) -> Vec<Frame> {
        let mut frames = if self.open == Some(block) {
            Vec::new()
        } else {
            self.start(block, content)
        };
        frames.push(self.delta(delta));
        frames
    }

    fn delta(&self, delta: &Value) -> Frame {
        event(
            "content_block_delta",
            json!({"index": self.begun.saturating_sub(1), "delta": delta}),
        )
    }
}

fn event(name: &'static str, mut data: Value) -> Frame {
    data["type"] = name.into();
    Frame::Event(Some(name), data)
}

/// Tokens that were not computed again are counted apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached, "cache_read_input_tokens": usage.cached, "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion,
    })
}

fn stop(finish: &Finish) -> Value {
    let (reason, sequence) = match finish {
        Finish::Stop => ("end_turn", None),
        Finish::StopString(sequence) => ("stop_sequence", Some(sequence)),
        Finish::Length => ("max_tokens", None),
        Finish::ToolCalls => ("tool_use", None),
    };
    json!({"stop_reason": reason, "stop_sequence": sequence})
}

fn content(item: &Item) -> Value {
    match item {
        Item::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": SIGNATURE}),
        Item::Text(text) => json!({"type": "text", "text": text}),
        Item::Call { name, arguments } => {
            // A call that was cut off has no arguments that could be given as an object.
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id("toolu_"), "name": name, "input": input})
        }
    }
}

impl Dialect for Answer {
    fn shape(&self) -> Shape {
        Shape::Anthropic
    }

    fn begin(&mut self, counts: Usage) -> Vec<Frame> {
        let stop = json!({"stop_reason": null, "stop_sequence": null});
        vec![
            event(
                "message_start",
                json!({"message": self.message(Vec::new(), &stop, usage(counts))}),
            ),
            event("ping", json!({})),
        ]
    }

    fn part(&mut self, _choice: usize, part: Part, _scores: Vec<Score>) -> Vec<Frame> {
        match part {
            Part::Reasoning(text) => {
                let content = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.text(
                    Block::Thinking,
                    &content,
                    &json!({"type": "thinking_delta", "thinking": text}),
                )
            }
            Part::Text(text) => self.text(
                Block::Text,
                &json!({"type": "text", "text": ""}),
                &json!({"type": "text_delta", "text": text}),
            ),
            Part::Call { name } => self.start(
                Block::ToolUse,
                &json!({"type": "tool_use", "id": id("toolu_"), "name": name, "input": {}}),
            ),
            Part::Arguments(text) => {
                vec![self.delta(&json!({"type": "input_json_delta", "partial_json": text}))]
            }
            Part::CallEnd => self.stop(),
        }
    }

    fn end_choice(&mut self, _choice: usize, finish: &Finish, _scores: Vec<Score>) -> Vec<Frame> {
        self.finish = finish.clone();
        self.stop()
    }

    fn end(&mut self, counts: Usage) -> Vec<Frame> {
        let delta = json!({"delta": stop(&self.finish), "usage": usage(counts)});
        vec![event("message_delta", delta), event("message_stop", json!({}))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::Event(Some("error"), error.json(Shape::Anthropic))]
    }

    fn whole(&mut self, answers: Vec<Whole>, counts: Usage) -> Value {
        let answer = answers.into_iter().next().unwrap_or_default();
        let blocks = answer.items.iter().map(content).collect();
        self.message(blocks, &stop(&answer.finish), usage(counts))
    }
}
