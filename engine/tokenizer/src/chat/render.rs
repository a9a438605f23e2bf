//! From messages to turns, and from turns to pieces.

use std::collections::HashMap;

use super::pieces::Pieces;
use super::texts;
use super::{Chat, Message, Thinking, ToolCall};
use crate::{Special, dsml};

/// What stands between two turn tokens.
enum Turn<'a> {
    /// Texts and tool results.
    User(Vec<Block<'a>>),
    Assistant {
        reasoning: &'a str,
        content: &'a str,
        calls: &'a [ToolCall],
    },
}

enum Block<'a> {
    Text(&'a str),
    Result { call: &'a str, content: &'a str },
}

/// Instructions first, wherever they stand; then the turns; then the opening of the answer.
pub(super) fn pieces(chat: &Chat) -> Pieces {
    let mut pieces = Pieces::default();
    pieces.special(Special::Bos);
    if chat.thinking == Thinking::Max {
        pieces.text(texts::MAX_EFFORT);
    }
    instructions(&mut pieces, chat);
    let turns = turns(&chat.messages);
    let last_user = turns.iter().rposition(|turn| matches!(turn, Turn::User(_)));
    let thinks = chat.thinking != Thinking::Off;
    for (i, turn) in turns.iter().enumerate() {
        // Reasoning before the last user turn is dropped, as in training, unless there are tools.
        let thought = thinks && (!chat.tools.is_empty() || last_user.is_none_or(|user| i > user));
        let continued = chat.continues && i + 1 == turns.len();
        turn_pieces(&mut pieces, turn, thought, continued);
    }
    if !(chat.continues && chat.ends_with_assistant()) {
        pieces.special(Special::Assistant);
        pieces.special(if thinks {
            Special::ThinkOpen
        } else {
            Special::ThinkClose
        });
    }
    pieces
}

fn instructions(pieces: &mut Pieces, chat: &Chat) {
    let system = |message: &'_ Message| match message {
        Message::System(text) => Some(text.clone()),
        _ => None,
    };
    let texts: Vec<String> = chat.messages.iter().filter_map(system).collect();
    pieces.text(&texts.join("\n\n"));
    if !chat.tools.is_empty() {
        pieces.text("\n\n");
        pieces.format(texts::TOOLS_BEFORE);
        let schemas: Vec<String> = chat.tools.iter().map(ToString::to_string).collect();
        pieces.text(&schemas.join("\n"));
        pieces.text(texts::TOOLS_AFTER);
    }
    if let Some(schema) = &chat.schema {
        pieces.text(&format!("\n\n{}{schema}", texts::RESPONSE_FORMAT));
    }
}

/// Messages of the person and results of tools that follow one another share a turn; results stand in the order of their calls.
fn turns(messages: &[Message]) -> Vec<Turn<'_>> {
    let mut turns: Vec<Turn<'_>> = Vec::new();
    let mut order: HashMap<&str, usize> = HashMap::new();
    for message in messages {
        let block = match message {
            Message::System(_) => continue,
            Message::Assistant {
                reasoning,
                content,
                calls,
            } => {
                if !calls.is_empty() {
                    order = calls
                        .iter()
                        .enumerate()
                        .map(|(i, call)| (call.id.as_str(), i))
                        .collect();
                }
                let reasoning = reasoning.as_deref().unwrap_or_default();
                turns.push(Turn::Assistant {
                    reasoning,
                    content,
                    calls,
                });
                continue;
            }
            Message::User(text) => Block::Text(text),
            Message::ToolResult { call, content } => Block::Result { call, content },
        };
        if let Some(Turn::User(blocks)) = turns.last_mut() {
            blocks.push(block);
            sort_results(blocks, &order);
        } else {
            turns.push(Turn::User(vec![block]));
        }
    }
    turns
}

/// Results change places among themselves only.
fn sort_results(blocks: &mut [Block<'_>], order: &HashMap<&str, usize>) {
    let place = |block: &Block<'_>| match block {
        Block::Result { call, .. } => Some(order.get(call).copied().unwrap_or(0)),
        Block::Text(_) => None,
    };
    // All but the last block are in order already: one pass from the back puts the last in its place.
    let mut last = blocks.len() - 1;
    let Some(own) = place(&blocks[last]) else { return };
    for i in (0..last).rev() {
        match place(&blocks[i]) {
            Some(other) if other > own => {
                blocks.swap(i, last);
                last = i;
            }
            Some(_) => return,
            None => {}
        }
    }
}

fn turn_pieces(pieces: &mut Pieces, turn: &Turn<'_>, thought: bool, continued: bool) {
    match turn {
        Turn::User(blocks) => {
            pieces.special(Special::User);
            for (i, block) in blocks.iter().enumerate() {
                pieces.text(if i > 0 { "\n\n" } else { "" });
                block_pieces(pieces, block);
            }
        }
        Turn::Assistant {
            reasoning,
            content,
            calls,
        } => {
            pieces.special(Special::Assistant);
            if thought && !(continued && reasoning.is_empty()) {
                pieces.special(Special::ThinkOpen);
                pieces.text(reasoning);
            }
            pieces.special(Special::ThinkClose);
            pieces.text(content);
            call_pieces(pieces, calls);
            if !continued {
                pieces.special(Special::Eos);
            }
        }
    }
}

/// The closing tag inside a result is escaped, so that a result cannot end itself.
fn block_pieces(pieces: &mut Pieces, block: &Block<'_>) {
    match block {
        Block::Text(text) => pieces.text(text),
        Block::Result { content, .. } => {
            let content = content.replace("</tool_result>", "&lt;/tool_result>");
            pieces.text(&format!("<tool_result>{content}</tool_result>"));
        }
    }
}

fn call_pieces(pieces: &mut Pieces, calls: &[ToolCall]) {
    if calls.is_empty() {
        return;
    }
    pieces.format("\n\n<｜DSML｜tool_calls>\n");
    for call in calls {
        pieces.format("<｜DSML｜invoke name=\"");
        pieces.text(&format!("{}\">\n", call.name));
        for (i, parameter) in dsml::parameters(&call.arguments).iter().enumerate() {
            pieces.format(if i > 0 {
                "\n<｜DSML｜parameter name=\""
            } else {
                "<｜DSML｜parameter name=\""
            });
            pieces.text(&format!(
                "{}\" string=\"{}\">{}",
                parameter.name, parameter.string, parameter.value
            ));
            pieces.format("</｜DSML｜parameter>");
        }
        pieces.format("\n</｜DSML｜invoke>\n");
    }
    pieces.format("</｜DSML｜tool_calls>");
}
