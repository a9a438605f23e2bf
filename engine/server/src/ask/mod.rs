//! One request, whatever the dialect it came in.

pub(crate) mod body;
pub(crate) mod content;
pub(crate) mod sampling;
pub(crate) mod share;

use ds4_model::choice::Shaping;
use ds4_model::sampling::Sampling;
use ds4_tokenizer::chat::Chat;
use ds4_tokenizer::json::Json;
use ds4_tokenizer::{Segment, Special, Tokenizer};

use crate::error::ApiError;

/// What is to be continued.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    Chat(Chat),
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    pub(crate) fn tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        match self {
            Self::Chat(chat) => chat.tokens(tokenizer),
            Self::Text(text) => {
                tokenizer.encode_segments(&[Segment::Special(Special::Bos), Segment::Text(text)])
            }
            Self::Tokens(tokens) => tokens.clone(),
        }
    }
}

/// Whether the model may, must or must not call tools.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum ToolChoice {
    #[default]
    Auto,
    None,
    /// At least one call.
    Required,
    /// A call of this tool.
    Named(String),
}

/// The form of the answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) enum Format {
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// What this schema allows.
    Schema(Json),
}

/// How tokens are chosen, and how many.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    pub(crate) sampling: Sampling,
    pub(crate) bias: Vec<(u32, f32)>,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    /// Tell this many alternatives per token.
    pub(crate) logprobs: Option<usize>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stops: Vec<String>,
    /// Most tokens of reasoning.
    pub(crate) thinking_budget: Option<u32>,
    /// Go on after the end of the turn: measurements want answers of equal length.
    pub(crate) ignore_eos: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            sampling: Sampling {
                temperature: 1.0,
                seed: random_seed(),
                ..Sampling::GREEDY
            },
            bias: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logprobs: None,
            max_tokens: None,
            stops: Vec::new(),
            thinking_budget: None,
            ignore_eos: false,
        }
    }
}

impl Wishes {
    /// All but the guide.
    pub(crate) fn shaping(&self) -> Shaping {
        Shaping {
            bias: self.bias.clone(),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logprobs: self.logprobs,
            guide: None,
        }
    }

    /// Each of several answers draws on its own.
    pub(crate) fn sampling(&self, choice: usize) -> Sampling {
        let seed = self.sampling.seed.wrapping_add(choice as u64);
        Sampling {
            seed,
            ..self.sampling
        }
    }
}

pub(crate) fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

/// A request that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    pub(crate) wishes: Wishes,
    pub(crate) tool_choice: ToolChoice,
    /// More than one call in an answer.
    pub(crate) parallel_calls: bool,
    pub(crate) format: Format,
    /// Number of answers.
    pub(crate) choices: usize,
    pub(crate) stream: bool,
    pub(crate) share: share::Share,
}

impl Ask {
    /// Whether the answer begins inside of reasoning.
    pub(crate) fn opens_reasoning(&self) -> bool {
        matches!(&self.prompt, Prompt::Chat(chat) if chat.opens_reasoning())
    }

    /// Functions that may be called.
    pub(crate) fn tools(&self) -> &[Json] {
        match &self.prompt {
            Prompt::Chat(chat) => &chat.tools,
            Prompt::Text(_) | Prompt::Tokens(_) => &[],
        }
    }
}

/// A tool as the model sees it; `at` names it in errors.
pub(crate) fn tool(
    at: &str,
    name: &str,
    description: Option<&Json>,
    parameters: Option<&Json>,
    strict: Option<bool>,
) -> Result<Json, ApiError> {
    // OpenAI's rule; names go into markup, so anything else would be unsafe there too.
    let sound = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !sound {
        let message = format!("{at}.name: expected 1 to 128 letters, digits, _, - or ., found {name:?}");
        return Err(ApiError::invalid(at, message));
    }
    if let Some(other) = parameters.filter(|parameters| !matches!(parameters, Json::Object(_) | Json::Null)) {
        return Err(ApiError::invalid(
            at,
            format!("{at}.parameters: expected a JSON schema object, found {other}"),
        ));
    }
    let mut members = vec![("name".to_owned(), Json::String(name.to_owned()))];
    let mut add = |key: &str, value: Option<Json>| members.extend(value.map(|value| (key.to_owned(), value)));
    add("description", description.cloned());
    add("parameters", parameters.cloned());
    add("strict", strict.map(Json::Bool));
    Ok(Json::Object(members))
}

/// Names must tell tools apart, and a forced one must exist.
pub(crate) fn check_tools(tools: &[Json], choice: &ToolChoice) -> Result<(), ApiError> {
    let name = |tool: &Json| {
        tool.get("name")
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let names: std::collections::HashSet<String> = tools.iter().map(name).collect();
    if names.len() != tools.len() {
        return Err(ApiError::invalid(
            "tools",
            "tools: expected distinct names, found one twice",
        ));
    }
    match choice {
        ToolChoice::Named(wanted) if !names.contains(wanted) => Err(ApiError::invalid(
            "tool_choice",
            format!("tool_choice: expected the name of a tool, found {wanted:?}"),
        )),
        ToolChoice::Required if tools.is_empty() => Err(ApiError::invalid(
            "tool_choice",
            "tool_choice: expected tools when a call is required, found none",
        )),
        _ => Ok(()),
    }
}
