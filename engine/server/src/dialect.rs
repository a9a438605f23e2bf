//! What an API puts around an answer.

use ds4_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::error::{ApiError, Shape};
use crate::turn::{Finish, Part, Scored};

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u32,
    /// Of the prompt, not computed again.
    pub(crate) cached: u32,
    pub(crate) completion: u32,
    /// Of the completion, reasoning.
    pub(crate) reasoned: u32,
}

/// A piece of a stream.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Frame {
    /// An event, with its name where the dialect names events.
    Event(Option<&'static str>, Value),
    /// For people and proxies; clients skip it.
    Comment(String),
    /// `[DONE]`
    Done,
}

/// How likely a token of the answer was.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Score {
    pub(crate) token: Likely,
    pub(crate) top: Vec<Likely>,
}

/// A token and the logarithm of its probability.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Likely {
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
}

impl Likely {
    fn new(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default().to_vec();
        // JSON has no negative infinity; this is what OpenAI answers for what cannot be.
        let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
        Self {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
            logprob,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"token": self.text, "logprob": self.logprob, "bytes": self.bytes})
    }
}

impl Score {
    pub(crate) fn new(tokenizer: &Tokenizer, scored: &Scored) -> Self {
        let likely = |token, logprob| Likely::new(tokenizer, token, logprob);
        Self {
            token: likely(scored.token, scored.logprobs.chosen),
            top: scored
                .logprobs
                .top
                .iter()
                .map(|(token, logprob)| likely(*token, *logprob))
                .collect(),
        }
    }
}

/// What an answer holds, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Reasoning(String),
    Text(String),
    Call { name: String, arguments: String },
}

/// A whole answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Whole {
    pub(crate) items: Vec<Item>,
    pub(crate) scores: Vec<Score>,
    pub(crate) finish: Finish,
}

impl Default for Whole {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            scores: Vec::new(),
            finish: Finish::Length,
        }
    }
}

impl Whole {
    pub(crate) fn add(&mut self, part: Part) {
        match (self.items.last_mut(), part) {
            (Some(Item::Reasoning(last)), Part::Reasoning(text))
            | (Some(Item::Text(last)), Part::Text(text)) => {
                last.push_str(&text);
            }
            (Some(Item::Call { arguments, .. }), Part::Arguments(text)) => arguments.push_str(&text),
            (_, Part::Reasoning(text)) => self.items.push(Item::Reasoning(text)),
            (_, Part::Text(text)) => self.items.push(Item::Text(text)),
            (_, Part::Call { name }) => self.items.push(Item::Call {
                name,
                arguments: String::new(),
            }),
            // Arguments without a call do not occur.
            (_, Part::Arguments(_) | Part::CallEnd) => {}
        }
    }

    /// All text or all reasoning as one.
    pub(crate) fn text(&self, reasoning: bool) -> String {
        let part = |item: &'_ Item| match item {
            Item::Text(text) if !reasoning => Some(text.clone()),
            Item::Reasoning(text) if reasoning => Some(text.clone()),
            _ => None,
        };
        self.items.iter().filter_map(part).collect()
    }
}

/// An API's way to say an answer. It keeps what it has said, for APIs that repeat it.
pub(crate) trait Dialect: Send {
    fn shape(&self) -> Shape;

    /// Before the first part.
    fn begin(&mut self, usage: Usage) -> Vec<Frame>;

    /// One part of one answer.
    fn part(&mut self, choice: usize, part: Part, scores: Vec<Score>) -> Vec<Frame>;

    /// One answer is complete.
    fn end_choice(&mut self, choice: usize, finish: &Finish, scores: Vec<Score>) -> Vec<Frame>;

    /// All answers are complete.
    fn end(&mut self, usage: Usage) -> Vec<Frame>;

    /// The stream ends early.
    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::Event(None, error.json(self.shape()))]
    }

    /// Everything at once.
    fn whole(&mut self, answers: Vec<Whole>, usage: Usage) -> Value;
}

/// A name that no other answer has.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests;
