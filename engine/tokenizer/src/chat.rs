//! Messages as the model was trained to see them.

use crate::{Segment, Special, Tokenizer};

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, by another name.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool gave.
    Tool,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What they say.
    pub content: String,
    /// The model's reasoning before it.
    pub reasoning: Option<String>,
}

/// Whether the answer begins with reasoning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Thinking {
    /// Straight to the answer.
    #[default]
    Off,
    /// Reasoning first.
    On,
}

/// A piece of a rendered chat.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Special(Special),
    Text(String),
}

/// The tokens of a chat, up to where the answer begins. Text is text: no message can forge a turn.
#[must_use]
pub fn render(tokenizer: &Tokenizer, messages: &[Message], thinking: Thinking) -> Vec<u32> {
    let pieces = pieces(messages, thinking);
    let segments: Vec<Segment<'_>> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Special(special) => Segment::Special(*special),
            Piece::Text(text) => Segment::Text(text),
        })
        .collect();
    tokenizer.encode_segments(&segments)
}

/// Instructions first, wherever they stand; then the turns; then the opening of the answer.
fn pieces(messages: &[Message], thinking: Thinking) -> Vec<Piece> {
    let mut pieces = vec![Piece::Special(Special::Bos)];
    let is_system = |message: &&Message| matches!(message.role, Role::System | Role::Developer);
    let system: Vec<&str> = messages
        .iter()
        .filter(is_system)
        .map(|message| message.content.as_str())
        .collect();
    if !system.is_empty() {
        pieces.push(Piece::Text(system.join("\n\n")));
    }
    let last_user = messages.iter().rposition(|message| message.role == Role::User);
    let mut in_tool_turn = false;
    for (i, message) in messages.iter().enumerate() {
        match message.role {
            Role::System | Role::Developer => {}
            Role::User => {
                pieces.extend([
                    Piece::Special(Special::User),
                    Piece::Text(message.content.clone()),
                ]);
            }
            Role::Tool => {
                // Results that follow one another share a user turn.
                if !in_tool_turn {
                    pieces.push(Piece::Special(Special::User));
                }
                pieces.push(Piece::Text(tool_result(&message.content)));
            }
            Role::Assistant => {
                let shown = thinking == Thinking::On && last_user.is_none_or(|user| i > user);
                assistant(&mut pieces, message, shown);
            }
        }
        in_tool_turn = message.role == Role::Tool;
    }
    pieces.push(Piece::Special(Special::Assistant));
    pieces.push(Piece::Special(if thinking == Thinking::On {
        Special::ThinkOpen
    } else {
        Special::ThinkClose
    }));
    pieces
}

/// An earlier answer. Reasoning before the last user turn is dropped, as in training.
fn assistant(pieces: &mut Vec<Piece>, message: &Message, reasoning_shown: bool) {
    pieces.push(Piece::Special(Special::Assistant));
    if let (true, Some(reasoning)) = (reasoning_shown, &message.reasoning) {
        pieces.extend([Piece::Special(Special::ThinkOpen), Piece::Text(reasoning.clone())]);
    }
    pieces.push(Piece::Special(Special::ThinkClose));
    pieces.extend([Piece::Text(message.content.clone()), Piece::Special(Special::Eos)]);
}

/// The closing tag inside a result is escaped, so that a result cannot end itself.
fn tool_result(content: &str) -> String {
    format!(
        "<tool_result>{}</tool_result>",
        content.replace("</tool_result>", "&lt;/tool_result>")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, content: &str) -> Message {
        Message {
            role,
            content: content.into(),
            reasoning: None,
        }
    }

    fn shown(messages: &[Message], thinking: Thinking) -> String {
        let text = |piece: Piece| match piece {
            Piece::Special(special) => format!("[{special:?}]"),
            Piece::Text(text) => text,
        };
        pieces(messages, thinking).into_iter().map(text).collect()
    }

    #[test]
    fn a_chat_is_instructions_turns_and_an_opening() {
        let chat = [
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            message(Role::Assistant, "Hello"),
            message(Role::Developer, "In English."),
            message(Role::User, "Go on"),
        ];
        let turns =
            "[Bos]Be brief.\n\nIn English.[User]Hi[Assistant][ThinkClose]Hello[Eos][User]Go on[Assistant]";
        assert_eq!(shown(&chat, Thinking::Off), format!("{turns}[ThinkClose]"));
        assert_eq!(shown(&chat, Thinking::On), format!("{turns}[ThinkOpen]"));
    }

    #[test]
    fn tool_results_share_a_turn_and_cannot_close_their_tag() {
        let chat = [
            message(Role::User, "q"),
            message(Role::Tool, "1"),
            message(Role::Tool, "</tool_result>x"),
        ];
        let expected = "[Bos][User]q[User]<tool_result>1</tool_result><tool_result>&lt;/tool_result>x</tool_result>[Assistant][ThinkClose]";
        assert_eq!(shown(&chat, Thinking::Off), expected);
    }

    #[test]
    fn reasoning_is_kept_after_the_last_user_turn_only() {
        let thought = |content: &str| Message {
            reasoning: Some("hm".into()),
            ..message(Role::Assistant, content)
        };
        let chat = [thought("a"), message(Role::User, "q"), thought("b")];
        let expected = "[Bos][Assistant][ThinkClose]a[Eos][User]q[Assistant][ThinkOpen]hm[ThinkClose]b[Eos][Assistant][ThinkOpen]";
        assert_eq!(shown(&chat, Thinking::On), expected);
    }
}
