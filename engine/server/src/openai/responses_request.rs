//! What clients of responses send.

use axum::body::Bytes;
use ds4_model::sampling::Sampling;
use ds4_tokenizer::chat::{Chat, Message, Thinking, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat_request::effort;
use super::tools::{self, FormatField, ResponseTool};
use crate::app::Loaded;
use crate::ask::body::parse;
use crate::ask::content::Content;
use crate::ask::sampling::{limit, within};
use crate::ask::share::Share;
use crate::ask::{Ask, Format, Prompt, ToolChoice, Wishes, check_tools, random_seed};
use crate::error::ApiError;

#[derive(Clone, Debug, Deserialize)]
struct Request {
    model: String,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<ResponseTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    text: Option<TextField>,
    include: Option<Vec<String>>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    background: Option<bool>,
    truncation: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct TextField {
    format: Option<FormatField>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of items")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// A message, a call, a call's output, or reasoning.
#[derive(Clone, Debug, Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

/// What the request said, to be said again in the response.
pub(super) fn echo(body: &Bytes) -> Map<String, Value> {
    const KEPT: [&str; 13] = [
        "instructions",
        "max_output_tokens",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_p",
        "top_logprobs",
        "truncation",
        "user",
    ];
    let mut given: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    given.retain(|key, value| KEPT.contains(&key.as_str()) && !value.is_null());
    given
}

pub(super) fn understand(body: &Bytes, served: &str, loaded: &Loaded) -> Result<Ask, ApiError> {
    let request: Request = parse(body)?;
    if request.model != served {
        return Err(ApiError::unknown_model(&request.model, served));
    }
    request.refuse_unsupported()?;
    let tool_choice = tools::choice(request.tool_choice.as_ref())?;
    let given = request.tools.as_deref().unwrap_or_default();
    let tools = given
        .iter()
        .enumerate()
        .map(|(i, tool)| tool.json(i))
        .collect::<Result<Vec<_>, _>>()?;
    check_tools(&tools, &tool_choice)?;
    let format = request.text.as_ref().and_then(|text| text.format.as_ref());
    let format = format.map_or(Ok(Format::Text), |format| format.format("text.format"))?;
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
        thinking: request.thinking(loaded.engine.options().max_tokens)?,
        continues: false,
    };
    Ok(Ask {
        prompt: Prompt::Chat(chat),
        wishes: request.wishes()?,
        tool_choice,
        parallel_calls: request.parallel_tool_calls.unwrap_or(true),
        format,
        choices: 1,
        stream: request.stream.unwrap_or(false),
        share: Share::read(body)?,
    })
}

impl Request {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        if let Some(id) = &self.previous_response_id {
            return Err(ApiError::unknown_response(id));
        }
        let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let refused = [
            (
                set(&self.conversation),
                "conversation",
                "conversation: expected none; conversations are not kept, send the whole input",
            ),
            (
                set(&self.prompt),
                "prompt",
                "prompt: expected none; there are no stored prompts, send input and instructions",
            ),
            (
                self.background == Some(true),
                "background",
                "background: expected false; responses are not kept",
            ),
            (
                self.truncation
                    .as_deref()
                    .is_some_and(|truncation| truncation != "disabled"),
                "truncation",
                "truncation: expected disabled; nothing of the input is left out",
            ),
        ];
        match refused.into_iter().find(|(refused, ..)| *refused) {
            Some((_, param, message)) => Err(ApiError::unsupported(param, message)),
            None => Ok(()),
        }
    }

    fn thinking(&self, context: u64) -> Result<Thinking, ApiError> {
        let named = self
            .reasoning
            .as_ref()
            .and_then(|reasoning| reasoning.effort.as_deref());
        named.map_or(Ok(Thinking::Off), |name| {
            effort("reasoning.effort", name, context)
        })
    }

    fn wishes(&self) -> Result<Wishes, ApiError> {
        let asked = self
            .include
            .iter()
            .flatten()
            .any(|name| name == "message.output_text.logprobs");
        let top = match self.top_logprobs {
            Some(top) if top > 20 => {
                return Err(ApiError::invalid(
                    "top_logprobs",
                    format!("top_logprobs: expected 0 to 20, found {top}"),
                ));
            }
            top => top.or(asked.then_some(0)),
        };
        Ok(Wishes {
            sampling: Sampling {
                temperature: within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0),
                top_p: within("top_p", self.top_p, 0.0, 1.0)?
                    .filter(|top_p| *top_p > 0.0)
                    .unwrap_or(1.0),
                min_p: 0.0,
                top_k: 0,
                seed: random_seed(),
            },
            logprobs: top,
            max_tokens: limit("max_output_tokens", self.max_output_tokens)?,
            ..Wishes::default()
        })
    }

    fn messages(&self) -> Result<Vec<Message>, ApiError> {
        let mut messages: Vec<Message> = self.instructions.iter().cloned().map(Message::System).collect();
        match &self.input {
            Input::Text(text) => messages.push(Message::User(text.clone())),
            Input::Items(items) if items.is_empty() => {
                return Err(ApiError::invalid(
                    "input",
                    "input: expected at least one item, found none",
                ));
            }
            Input::Items(items) => {
                for (i, item) in items.iter().enumerate() {
                    item.add(i, &mut messages)?;
                }
            }
        }
        Ok(messages)
    }
}

impl Item {
    fn add(&self, i: usize, messages: &mut Vec<Message>) -> Result<(), ApiError> {
        let at = format!("input[{i}]");
        let missing =
            |name: &str| ApiError::invalid("input", format!("{at}.{name}: expected a value, found none"));
        match self.kind.as_deref().unwrap_or("message") {
            "message" => {
                let content = self.content.as_ref().ok_or_else(|| missing("content"))?;
                let text = content.text(
                    &format!("{at}.content"),
                    &["input_text", "output_text", "text", "refusal"],
                )?;
                self.message(&at, text, messages)
            }
            "function_call" => {
                let call = ToolCall {
                    id: self.call_id.clone().ok_or_else(|| missing("call_id"))?,
                    name: self.name.clone().ok_or_else(|| missing("name"))?,
                    arguments: self.arguments.clone().unwrap_or_default(),
                };
                answer(messages).2.push(call);
                Ok(())
            }
            "function_call_output" => {
                let output = self.output.as_ref().ok_or_else(|| missing("output"))?;
                let content = output.text(&format!("{at}.output"), &["input_text", "output_text", "text"])?;
                messages.push(Message::ToolResult {
                    call: self.call_id.clone().ok_or_else(|| missing("call_id"))?,
                    content,
                });
                Ok(())
            }
            "reasoning" => {
                let text = self.content.as_ref().map_or(Ok(String::new()), |content| {
                    content.text(&format!("{at}.content"), &["reasoning_text"])
                })?;
                // Reasoning begins an answer, also after an earlier one.
                messages.push(Message::Assistant {
                    reasoning: Some(text),
                    content: String::new(),
                    calls: Vec::new(),
                });
                Ok(())
            }
            other => {
                let kinds = "message, function_call, function_call_output or reasoning";
                Err(ApiError::unsupported(
                    "input",
                    format!("{at}.type: expected {kinds}, found {other:?}"),
                ))
            }
        }
    }

    fn message(&self, at: &str, text: String, messages: &mut Vec<Message>) -> Result<(), ApiError> {
        match self.role.as_deref() {
            Some("system" | "developer") => messages.push(Message::System(text)),
            Some("user") => messages.push(Message::User(text)),
            Some("assistant") => answer(messages).1.push_str(&text),
            other => {
                let message =
                    format!("{at}.role: expected system, developer, user or assistant, found {other:?}");
                return Err(ApiError::invalid("input", message));
            }
        }
        Ok(())
    }
}

type Open<'a> = (&'a mut Option<String>, &'a mut String, &'a mut Vec<ToolCall>);

/// The answer that is being put together from items: its reasoning, text and calls come apart.
fn answer(messages: &mut Vec<Message>) -> Open<'_> {
    if !matches!(messages.last(), Some(Message::Assistant { .. })) {
        messages.push(Message::Assistant {
            reasoning: None,
            content: String::new(),
            calls: Vec::new(),
        });
    }
    match messages.last_mut() {
        Some(Message::Assistant {
            reasoning,
            content,
            calls,
        }) => (reasoning, content, calls),
        _ => unreachable!("an assistant's message was just put there"),
    }
}
