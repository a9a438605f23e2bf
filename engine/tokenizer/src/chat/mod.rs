//! Chats as the model was trained to see them.

mod pieces;
mod render;
mod texts;

use crate::Tokenizer;
use crate::json::Json;

/// A tool that the model asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToolCall {
    /// Names the call; its result names it back.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object as text, as the APIs carry it.
    pub arguments: String,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Instructions, by the name of system or developer.
    System(String),
    /// What the person says.
    User(String),
    /// What the model said.
    Assistant {
        /// Its reasoning before.
        reasoning: Option<String>,
        /// The answer.
        content: String,
        /// The tools it asked for.
        calls: Vec<ToolCall>,
    },
    /// What a tool gave.
    ToolResult {
        /// The call's id.
        call: String,
        /// The result.
        content: String,
    },
}

/// Whether the answer begins with reasoning, and how long it is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Thinking {
    /// Straight to the answer.
    #[default]
    Off,
    /// Reasoning first.
    High,
    /// Reasoning first, as long as it takes.
    Max,
}

/// A chat to answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chat {
    /// From the first to the last.
    pub messages: Vec<Message>,
    /// Functions that the model may call: objects with `name`, `description` and `parameters`.
    pub tools: Vec<Json>,
    /// The schema that the answer must follow.
    pub schema: Option<Json>,
    /// Whether to reason first.
    pub thinking: Thinking,
    /// The last message is the beginning of the answer.
    pub continues: bool,
}

impl Chat {
    /// A question without anything around it.
    #[must_use]
    pub fn question(text: &str) -> Self {
        Self {
            messages: vec![Message::User(text.to_owned())],
            ..Self::default()
        }
    }

    /// The tokens, up to where the answer begins. Text is text: no message can forge a turn.
    #[must_use]
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        render::pieces(self).tokens(tokenizer)
    }

    /// The same as one string, special tokens by their texts: for people and tests, not for encoding.
    #[must_use]
    pub fn shown(&self) -> String {
        render::pieces(self).shown()
    }

    /// Whether the answer begins inside of reasoning.
    #[must_use]
    pub fn opens_reasoning(&self) -> bool {
        self.thinking != Thinking::Off && !(self.continues && self.ends_with_assistant())
    }

    fn ends_with_assistant(&self) -> bool {
        matches!(self.messages.last(), Some(Message::Assistant { .. }))
    }
}
