//! What clients send.

use ds4_model::sampling::Sampling;
use ds4_tokenizer::chat::{Message, Role, Thinking};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// `stop`: one string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: bool,
}

/// What both kinds of completion share.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Common {
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) stream: bool,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) max_completion_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    n: Option<u32>,
    logprobs: Option<Value>,
    tools: Option<Vec<Value>>,
    response_format: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

#[derive(Clone, Debug, Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
    reasoning_content: Option<String>,
}

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ChatRequest {
    #[serde(flatten)]
    pub(crate) common: Common,
    messages: Vec<ChatMessage>,
    reasoning_effort: Option<String>,
}

/// `POST /v1/completions`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    pub(crate) common: Common,
    pub(crate) prompt: OneOrMany<String>,
}

impl ChatRequest {
    pub(crate) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "messages: expected at least one, found none",
            ));
        }
        self.messages.iter().map(ChatMessage::message).collect()
    }

    /// Reasoning is on when an effort is asked for.
    pub(crate) fn thinking(&self) -> Thinking {
        match self.reasoning_effort.as_deref() {
            None | Some("none") => Thinking::Off,
            Some(_) => Thinking::On,
        }
    }
}

impl ChatMessage {
    fn message(&self) -> Result<Message, ApiError> {
        let role = match self.role.as_str() {
            "system" => Role::System,
            "developer" => Role::Developer,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                let message =
                    format!("role: expected system, developer, user, assistant or tool, found {other:?}");
                return Err(ApiError::invalid("messages", message));
            }
        };
        let content = match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().map(Part::text).collect::<Result<_, _>>()?,
        };
        Ok(Message {
            role,
            content,
            reasoning: self.reasoning_content.clone(),
        })
    }
}

impl Part {
    fn text(&self) -> Result<&str, ApiError> {
        if self.kind == "text" {
            return Ok(&self.text);
        }
        Err(ApiError::invalid(
            "messages",
            format!("content: expected parts of type text, found {:?}", self.kind),
        ))
    }
}

impl CompletionRequest {
    pub(crate) fn text(&self) -> Result<&str, ApiError> {
        match &self.prompt {
            OneOrMany::One(text) => Ok(text),
            OneOrMany::Many(texts) => match texts.as_slice() {
                [text] => Ok(text),
                other => Err(ApiError::invalid(
                    "prompt",
                    format!("prompt: expected one text, found {}", other.len()),
                )),
            },
        }
    }
}

impl Common {
    /// Refuses what this build does not do, rather than ignoring it.
    pub(crate) fn check(&self, served: &str) -> Result<(), ApiError> {
        if self.model != served {
            return Err(ApiError::unknown_model(&self.model, served));
        }
        let off = |value: &Option<Value>| matches!(value, None | Some(Value::Null | Value::Bool(false)));
        let text_format = |value: &Value| value.get("type").and_then(Value::as_str) == Some("text");
        let refusals = [
            (
                self.n.is_some_and(|n| n != 1),
                "n",
                "n: expected 1; several choices are not supported yet",
            ),
            (!off(&self.logprobs), "logprobs", "logprobs: not supported yet"),
            (
                self.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
                "tools",
                "tools: not supported yet",
            ),
            (
                self.response_format
                    .as_ref()
                    .is_some_and(|format| !text_format(format)),
                "response_format",
                "response_format: expected text; other formats are not supported yet",
            ),
            (
                self.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)),
                "temperature",
                "temperature: expected 0 to 2",
            ),
            (
                self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)),
                "top_p",
                "top_p: expected more than 0 and at most 1",
            ),
            (
                self.min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)),
                "min_p",
                "min_p: expected 0 to 1",
            ),
            (
                self.limit() == Some(0),
                "max_tokens",
                "max_tokens: expected at least 1",
            ),
        ];
        match refusals.into_iter().find(|(refused, ..)| *refused) {
            Some((_, param, message)) => Err(ApiError::invalid(param, message)),
            None => Ok(()),
        }
    }

    /// Most tokens to generate, when the client says so.
    pub(crate) fn limit(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    pub(crate) fn sampling(&self) -> Sampling {
        let random = || uuid::Uuid::new_v4().as_u64_pair().1;
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            top_k: self.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
            seed: self.seed.map_or_else(random, i64::cast_unsigned),
        }
    }

    pub(crate) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        // OpenAI's own limit is 4.
        if stops.len() > 16 {
            return Err(ApiError::invalid(
                "stop",
                format!("stop: expected at most 16 strings, found {}", stops.len()),
            ));
        }
        Ok(stops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> ChatRequest {
        serde_json::from_str(text).expect("a request")
    }

    #[test]
    fn a_plain_chat_has_the_usual_defaults() {
        let request = chat(
            r#"{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}"#,
        );
        assert_eq!(request.common.check("m"), Ok(()));
        assert_eq!(request.messages().expect("sound")[0].content, "hi");
        assert_eq!(
            (
                request.common.sampling().temperature,
                request.common.stream,
                request.thinking()
            ),
            (1.0, false, Thinking::Off)
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, param) in [
            (r#""n": 2"#, "n"),
            (r#""tools": [{}]"#, "tools"),
            (r#""logprobs": true"#, "logprobs"),
            (r#""temperature": 3"#, "temperature"),
            (r#""top_p": 0"#, "top_p"),
            (r#""max_tokens": 0"#, "max_tokens"),
            (r#""response_format": {"type": "json_object"}"#, "response_format"),
        ] {
            let request = chat(&format!(r#"{{"model": "m", "messages": [], {field}}}"#));
            assert_eq!(request.common.check("m").expect_err("refused").param, Some(param));
        }
        assert_eq!(
            chat(r#"{"model": "x", "messages": []}"#)
                .common
                .check("m")
                .expect_err("unknown")
                .status,
            404
        );
        let role = chat(r#"{"model": "m", "messages": [{"role": "robot", "content": "x"}]}"#);
        assert!(role.messages().expect_err("unknown").message.contains("robot"));
    }
}
