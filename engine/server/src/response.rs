//! What clients get.

use ds4_runtime::FinishReason;
use serde_json::{Value, json};

/// Which of the two surfaces answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u32,
    pub(crate) completion: u32,
    pub(crate) cached: u32,
}

impl Usage {
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// Part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Delta {
    /// The answer.
    Text(String),
    /// Reasoning before it.
    Reasoning(String),
}

pub(crate) const fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// What identifies an answer in each of its parts.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Envelope {
    fn wrap(&self, object: &str, choices: &Value, usage: Option<Usage>) -> Value {
        let mut value = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        });
        if let (Some(usage), Some(object)) = (usage, value.as_object_mut()) {
            object.insert("usage".into(), usage.json());
        }
        value
    }

    /// The whole answer.
    pub(crate) fn whole(&self, text: &str, reasoning: &str, finish: &str, usage: Usage) -> Value {
        let choice = match self.kind {
            Kind::Chat => {
                let mut message = json!({"role": "assistant", "content": text});
                if let (false, Some(object)) = (reasoning.is_empty(), message.as_object_mut()) {
                    object.insert("reasoning_content".into(), reasoning.into());
                }
                json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}])
            }
            Kind::Completion => {
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}])
            }
        };
        let object = if self.kind == Kind::Chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        self.wrap(object, &choice, Some(usage))
    }

    fn part(&self, choices: &Value, usage: Option<Usage>) -> Value {
        let object = if self.kind == Kind::Chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        self.wrap(object, choices, usage)
    }

    /// The first part of a stream; none for plain completions.
    pub(crate) fn opening(&self) -> Option<Value> {
        let choices =
            json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]);
        (self.kind == Kind::Chat).then(|| self.part(&choices, None))
    }

    /// One part of a stream.
    pub(crate) fn delta(&self, delta: &Delta) -> Value {
        let choices = match (self.kind, delta) {
            (Kind::Chat, Delta::Text(text)) => {
                json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}])
            }
            (Kind::Chat, Delta::Reasoning(text)) => {
                json!([{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": null}])
            }
            (Kind::Completion, Delta::Text(text) | Delta::Reasoning(text)) => {
                json!([{"index": 0, "text": text, "finish_reason": null}])
            }
        };
        self.part(&choices, None)
    }

    /// The last part with a choice.
    pub(crate) fn closing(&self, finish: &str) -> Value {
        let choices = match self.kind {
            Kind::Chat => json!([{"index": 0, "delta": {}, "finish_reason": finish}]),
            Kind::Completion => json!([{"index": 0, "text": "", "finish_reason": finish}]),
        };
        self.part(&choices, None)
    }

    /// The part with the counts.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        self.part(&json!([]), Some(usage))
    }
}
