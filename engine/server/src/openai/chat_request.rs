//! What clients of chat completions send.

use axum::body::Bytes;
use ds4_tokenizer::chat::{Chat, Message, Thinking, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use super::tools::{self, ChatTool, FormatField};
use crate::app::Loaded;
use crate::ask::body::parse;
use crate::ask::content::Content;
use crate::ask::sampling::Fields;
use crate::ask::share::Share;
use crate::ask::{Ask, Format, Prompt, ToolChoice, check_tools};
use crate::error::ApiError;

/// `POST /v1/chat/completions`, beside [`Fields`].
#[derive(Clone, Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<ChatMessage>,
    tools: Option<Vec<ChatTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<FormatField>,
    reasoning_effort: Option<String>,
    thinking: Option<ThinkingField>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    modalities: Option<Vec<String>>,
    functions: Option<Value>,
    function_call: Option<Value>,
    web_search_options: Option<Value>,
}

/// DeepSeek's own switch: `{"type": "enabled"}`.
#[derive(Clone, Debug, Deserialize)]
struct ThinkingField {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<CallField>>,
    tool_call_id: Option<String>,
    /// The answer goes on from this message.
    prefix: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct CallField {
    #[serde(default)]
    id: String,
    function: CalledFunction,
}

#[derive(Clone, Debug, Deserialize)]
struct CalledFunction {
    name: String,
    #[serde(default)]
    arguments: String,
}

/// A request that was understood, and whether the client wants the counts in a stream.
pub(super) fn understand(body: &Bytes, served: &str, loaded: &Loaded) -> Result<(Ask, bool), ApiError> {
    let fields: Fields = parse(body)?;
    fields.check_model(served)?;
    let request: ChatRequest = parse(body)?;
    request.refuse_unsupported()?;
    let mut wishes = fields.wishes(loaded.tokenizer.vocab_size(), request.top()?)?;
    let thinking = request.thinking(loaded.engine.options().max_tokens)?;
    wishes.thinking_budget = request
        .thinking
        .as_ref()
        .and_then(|thinking| thinking.budget_tokens);
    let tool_choice = tools::choice(request.tool_choice.as_ref())?;
    let given = request.tools.as_deref().unwrap_or_default();
    let tools = given
        .iter()
        .enumerate()
        .map(|(i, tool)| tool.json(i))
        .collect::<Result<Vec<_>, _>>()?;
    check_tools(&tools, &tool_choice)?;
    let format = request
        .response_format
        .as_ref()
        .map_or(Ok(Format::Text), |format| format.format("response_format"))?;
    let chat = Chat {
        messages: request.messages()?,
        tools: if tool_choice == ToolChoice::None {
            Vec::new()
        } else {
            tools
        },
        schema: if let Format::Schema(schema) = &format {
            Some(schema.clone())
        } else {
            None
        },
        thinking,
        continues: request
            .messages
            .last()
            .is_some_and(|last| last.prefix == Some(true)),
    };
    let usage = fields.include_usage()?;
    let ask = Ask {
        prompt: Prompt::Chat(chat),
        wishes,
        tool_choice,
        parallel_calls: request.parallel_tool_calls.unwrap_or(true),
        format,
        choices: fields.choices()?,
        stream: fields.stream(),
        share: Share::read(body)?,
    };
    Ok((ask, usage))
}

/// From this context on, the longest reasoning has room (as upstream's server decides).
const MAX_EFFORT_CONTEXT: u64 = 393_216;

/// An effort by its name. All but none and the longest are one: the model knows no others.
pub(crate) fn effort(at: &str, effort: &str, context: u64) -> Result<Thinking, ApiError> {
    match effort {
        "none" => Ok(Thinking::Off),
        "max" if context >= MAX_EFFORT_CONTEXT => Ok(Thinking::Max),
        "minimal" | "low" | "medium" | "high" | "xhigh" | "max" => Ok(Thinking::High),
        other => {
            let names = "none, minimal, low, medium, high, xhigh or max";
            Err(ApiError::invalid(
                at,
                format!("{at}: expected {names}, found {other:?}"),
            ))
        }
    }
}

impl ChatRequest {
    /// What would change the answer and is not there is refused; what only the provider's side sees is ignored.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let refused = [
            (
                set(&self.functions),
                "functions",
                "functions: expected none; send tools instead",
            ),
            (
                set(&self.function_call),
                "function_call",
                "function_call: expected none; send tool_choice instead",
            ),
            (
                set(&self.web_search_options),
                "web_search_options",
                "web_search_options: the server searches nothing",
            ),
            (
                self.modalities
                    .as_ref()
                    .is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")),
                "modalities",
                "modalities: expected text; this model writes text only",
            ),
        ];
        match refused.into_iter().find(|(refused, ..)| *refused) {
            Some((_, param, message)) => Err(ApiError::unsupported(param, message)),
            None => Ok(()),
        }
    }

    fn top(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (_, Some(top)) if top > 20 => Err(ApiError::invalid(
                "top_logprobs",
                format!("top_logprobs: expected 0 to 20, found {top}"),
            )),
            (false, Some(_)) => Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs: expected only when logprobs is true",
            )),
            (logprobs, top) => Ok(logprobs.then(|| top.unwrap_or(0))),
        }
    }

    /// Reasoning is on when it is asked for.
    fn thinking(&self, context: u64) -> Result<Thinking, ApiError> {
        let level = self
            .reasoning_effort
            .as_deref()
            .map(|name| effort("reasoning_effort", name, context))
            .transpose()?;
        match self.thinking.as_ref().map(|thinking| thinking.kind.as_str()) {
            None => Ok(level.unwrap_or_default()),
            Some("enabled" | "adaptive") => Ok(level
                .filter(|level| *level != Thinking::Off)
                .unwrap_or(Thinking::High)),
            Some("disabled") => Ok(Thinking::Off),
            Some(other) => Err(ApiError::invalid(
                "thinking",
                format!("thinking.type: expected enabled or disabled, found {other:?}"),
            )),
        }
    }

    fn messages(&self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "messages: expected at least one, found none",
            ));
        }
        self.messages
            .iter()
            .enumerate()
            .map(|(i, message)| message.message(i))
            .collect()
    }
}

impl ChatMessage {
    fn message(&self, i: usize) -> Result<Message, ApiError> {
        let at = format!("messages[{i}].content");
        let content = self.content.as_ref().map_or(Ok(String::new()), |content| {
            content.text(&at, &["text", "refusal"])
        })?;
        match self.role.as_str() {
            "system" | "developer" => Ok(Message::System(content)),
            "user" => Ok(Message::User(content)),
            "assistant" => Ok(Message::Assistant {
                reasoning: self.reasoning_content.clone(),
                content,
                calls: self.tool_calls.iter().flatten().map(CallField::call).collect(),
            }),
            "tool" => {
                let missing = || {
                    ApiError::invalid(
                        "messages",
                        format!("messages[{i}].tool_call_id: expected the id of a call, found none"),
                    )
                };
                Ok(Message::ToolResult {
                    call: self.tool_call_id.clone().ok_or_else(missing)?,
                    content,
                })
            }
            other => {
                let roles = "system, developer, user, assistant or tool";
                Err(ApiError::invalid(
                    "messages",
                    format!("messages[{i}].role: expected {roles}, found {other:?}"),
                ))
            }
        }
    }
}

impl CallField {
    fn call(&self) -> ToolCall {
        ToolCall {
            id: self.id.clone(),
            name: self.function.name.clone(),
            arguments: self.function.arguments.clone(),
        }
    }
}
