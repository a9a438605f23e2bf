//! OpenAI's surfaces: chat completions, completions, responses.

pub(crate) mod chat;
mod chat_request;
pub(crate) use chat_request::effort;
pub(crate) mod completions;
pub(crate) mod responses;
pub(crate) mod responses_events;
mod responses_request;
mod tools;

use serde_json::{Value, json};

use crate::dialect::{Score, Usage};
use crate::turn::Finish;

fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoned},
    })
}

const fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

/// As chat completions and responses tell it.
fn score(score: &Score) -> Value {
    let mut value = score.token.json();
    value["top_logprobs"] = score.top.iter().map(crate::dialect::Likely::json).collect();
    value
}
