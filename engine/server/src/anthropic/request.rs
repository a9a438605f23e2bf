//! What clients of messages send.

use axum::body::Bytes;
use ds4_model::sampling::Sampling;
use ds4_tokenizer::chat::{Chat, Message, Thinking, ToolCall};
use ds4_tokenizer::json::Json;
use serde::Deserialize;

use crate::app::Loaded;
use crate::ask::body::parse;
use crate::ask::content::{Content, Part};
use crate::ask::sampling::{limit, stops, within};
use crate::ask::share::Share;
use crate::ask::{Ask, Format, Prompt, ToolChoice, Wishes, check_tools, random_seed, tool};
use crate::error::ApiError;
use crate::openai::effort;

#[derive(Clone, Debug, Deserialize)]
struct Request {
    model: String,
    messages: Vec<Turn>,
    max_tokens: Option<u32>,
    system: Option<Content>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoiceField>,
    thinking: Option<ThinkingField>,
    output_config: Option<OutputConfig>,
}

#[derive(Clone, Debug, Deserialize)]
struct Turn {
    role: String,
    content: Content,
}

#[derive(Clone, Debug, Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<Json>,
    input_schema: Option<Json>,
}

#[derive(Clone, Debug, Deserialize)]
struct ToolChoiceField {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct ThinkingField {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<FormatField>,
}

#[derive(Clone, Debug, Deserialize)]
struct FormatField {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Json>,
}

/// Fewest tokens of reasoning that may be asked for, as the real API says.
const LEAST_BUDGET: u32 = 1024;

pub(super) fn understand(body: &Bytes, served: &str, loaded: &Loaded) -> Result<Ask, ApiError> {
    let request: Request = parse(body)?;
    let missing = || {
        ApiError::invalid(
            "max_tokens",
            "max_tokens: expected a number of tokens, found none",
        )
    };
    let max_tokens = limit("max_tokens", Some(request.max_tokens.ok_or_else(missing)?))?;
    let (chat, tool_choice, format) = request.chat(served, loaded)?;
    let wishes = Wishes {
        max_tokens,
        ..request.wishes(chat.thinking)?
    };
    let parallel = request
        .tool_choice
        .as_ref()
        .and_then(|choice| choice.disable_parallel_tool_use);
    Ok(Ask {
        prompt: Prompt::Chat(chat),
        wishes,
        tool_choice,
        parallel_calls: !parallel.unwrap_or(false),
        format,
        choices: 1,
        stream: request.stream.unwrap_or(false),
        share: Share::read(body)?,
    })
}

pub(super) fn count(body: &Bytes, served: &str, loaded: &Loaded) -> Result<usize, ApiError> {
    let request: Request = parse(body)?;
    let (chat, ..) = request.chat(served, loaded)?;
    Ok(chat.tokens(&loaded.tokenizer).len())
}

impl Request {
    fn chat(&self, served: &str, loaded: &Loaded) -> Result<(Chat, ToolChoice, Format), ApiError> {
        if self.model != served {
            return Err(ApiError::unknown_model(&self.model, served));
        }
        let tool_choice = self
            .tool_choice
            .as_ref()
            .map_or(Ok(ToolChoice::Auto), ToolChoiceField::choice)?;
        let given = self.tools.as_deref().unwrap_or_default();
        let tools = given
            .iter()
            .enumerate()
            .map(|(i, tool)| tool.json(i))
            .collect::<Result<Vec<_>, _>>()?;
        check_tools(&tools, &tool_choice)?;
        let thinking = self.thinking(loaded.engine.options().max_tokens)?;
        if thinking != Thinking::Off && matches!(tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
            return Err(ApiError::invalid(
                "tool_choice",
                "tool_choice: expected auto or none with thinking; a forced call leaves no room for it",
            ));
        }
        let format = self.format()?;
        let chat = Chat {
            messages: self.messages()?,
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
            // A last message of the assistant is the beginning of the answer.
            continues: true,
        };
        Ok((chat, tool_choice, format))
    }

    fn format(&self) -> Result<Format, ApiError> {
        let Some(format) = self
            .output_config
            .as_ref()
            .and_then(|config| config.format.as_ref())
        else {
            return Ok(Format::Text);
        };
        match (format.kind.as_str(), &format.schema) {
            ("json_schema", Some(schema @ Json::Object(_))) => Ok(Format::Schema(schema.clone())),
            _ => Err(ApiError::invalid(
                "output_config",
                "output_config.format: expected json_schema with a schema",
            )),
        }
    }

    fn wishes(&self, thinking: Thinking) -> Result<Wishes, ApiError> {
        let top_p = within("top_p", self.top_p, 0.0, 1.0)?
            .filter(|top_p| *top_p > 0.0)
            .unwrap_or(1.0);
        let sampling = Sampling {
            temperature: within("temperature", self.temperature, 0.0, 1.0)?.unwrap_or(1.0),
            top_p,
            min_p: 0.0,
            top_k: self.top_k.unwrap_or(0),
            seed: random_seed(),
        };
        let budget = self.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
        Ok(Wishes {
            sampling,
            stops: stops("stop_sequences", self.stop_sequences.clone().unwrap_or_default())?,
            thinking_budget: budget.filter(|_| thinking != Thinking::Off),
            ..Wishes::default()
        })
    }

    fn thinking(&self, context: u64) -> Result<Thinking, ApiError> {
        let named = self
            .output_config
            .as_ref()
            .and_then(|config| config.effort.as_deref());
        let level = named
            .map(|name| effort("output_config.effort", name, context))
            .transpose()?;
        let on = level
            .filter(|level| *level != Thinking::Off)
            .unwrap_or(Thinking::High);
        let Some(field) = &self.thinking else {
            return Ok(Thinking::Off);
        };
        match (field.kind.as_str(), field.budget_tokens) {
            ("disabled", _) => Ok(Thinking::Off),
            ("adaptive", _) => Ok(on),
            ("enabled", Some(budget))
                if budget >= LEAST_BUDGET && self.max_tokens.is_none_or(|most| budget < most) =>
            {
                Ok(on)
            }
            ("enabled", budget) => {
                let found = budget.map_or("none".to_owned(), |budget| budget.to_string());
                let message = format!(
                    "thinking.budget_tokens: expected at least {LEAST_BUDGET} and less than max_tokens, found {found}"
                );
                Err(ApiError::invalid("thinking", message))
            }
            (other, _) => Err(ApiError::invalid(
                "thinking",
                format!("thinking.type: expected enabled, disabled or adaptive, found {other:?}"),
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
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(Message::System(system.text("system", &["text"])?));
        }
        for (i, turn) in self.messages.iter().enumerate() {
            let at = format!("messages[{i}].content");
            match turn.role.as_str() {
                "user" => user(&turn.content, &at, &mut messages)?,
                "assistant" => messages.push(assistant(&turn.content, &at)?),
                other => {
                    let message = format!("messages[{i}].role: expected user or assistant, found {other:?}");
                    return Err(ApiError::invalid("messages", message));
                }
            }
        }
        Ok(messages)
    }
}

/// Texts and results of tools, in their order.
fn user(content: &Content, at: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let parts = match content {
        Content::Text(text) => {
            messages.push(Message::User(text.clone()));
            return Ok(());
        }
        Content::Parts(parts) => parts,
    };
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        messages.push(match part.kind.as_str() {
            "tool_result" => Message::ToolResult {
                call: required(part, &at, "tool_use_id")?,
                content: result(part, &at)?,
            },
            _ => Message::User(part.of(&at, &["text", "tool_result"])?.to_owned()),
        });
    }
    Ok(())
}

fn required(part: &Part, at: &str, name: &str) -> Result<String, ApiError> {
    let missing = || ApiError::invalid("messages", format!("{at}.{name}: expected a text, found none"));
    part.string(name).map(str::to_owned).ok_or_else(missing)
}

fn result(part: &Part, at: &str) -> Result<String, ApiError> {
    let at = format!("{at}.content");
    let text = match part.rest.get("content") {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(value) => {
            let content = Content::deserialize(value)
                .map_err(|error| ApiError::invalid("messages", format!("{at}: {error}")))?;
            content.text(&at, &["text"])?
        }
    };
    // The model's own format has no place for failures: they are said.
    let failed = part
        .rest
        .get("is_error")
        .and_then(serde_json::Value::as_bool)
        .unwrap_or(false);
    Ok(if failed { format!("Error: {text}") } else { text })
}

fn assistant(content: &Content, at: &str) -> Result<Message, ApiError> {
    let parts = match content {
        Content::Text(text) => {
            return Ok(Message::Assistant {
                reasoning: None,
                content: text.clone(),
                calls: Vec::new(),
            });
        }
        Content::Parts(parts) => parts,
    };
    let (mut reasoning, mut text, mut calls) = (None::<String>, Vec::new(), Vec::new());
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        match part.kind.as_str() {
            "thinking" => reasoning
                .get_or_insert_default()
                .push_str(&required(part, &at, "thinking")?),
            // Reasoning that its provider has hidden cannot be shown to another model.
            "redacted_thinking" => {}
            "tool_use" => calls.push(ToolCall {
                id: required(part, &at, "id")?,
                name: required(part, &at, "name")?,
                arguments: part
                    .rest
                    .get("input")
                    .map_or("{}".to_owned(), ToString::to_string),
            }),
            _ => text.push(part.of(&at, &["text", "thinking", "tool_use"])?),
        }
    }
    Ok(Message::Assistant {
        reasoning,
        content: text.join("\n\n"),
        calls,
    })
}

impl Tool {
    fn json(&self, i: usize) -> Result<Json, ApiError> {
        if let Some(kind) = self.kind.as_deref().filter(|kind| *kind != "custom") {
            let message = format!(
                "tools[{i}].type: expected \"custom\", found {kind:?}; the server runs no tools of its own"
            );
            return Err(ApiError::unsupported("tools", message));
        }
        tool(
            "tools",
            &self.name,
            self.description.as_ref(),
            self.input_schema.as_ref(),
            None,
        )
    }
}

impl ToolChoiceField {
    fn choice(&self) -> Result<ToolChoice, ApiError> {
        match (self.kind.as_str(), &self.name) {
            ("auto", _) => Ok(ToolChoice::Auto),
            ("none", _) => Ok(ToolChoice::None),
            ("any", _) => Ok(ToolChoice::Required),
            ("tool", Some(name)) => Ok(ToolChoice::Named(name.clone())),
            (other, _) => {
                let message =
                    format!("tool_choice: expected auto, any, none or a tool with its name, found {other:?}");
                Err(ApiError::invalid("tool_choice", message))
            }
        }
    }
}
