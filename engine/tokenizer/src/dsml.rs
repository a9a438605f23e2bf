//! DSML, the markup in which the model asks for tools: written for earlier calls, read while the model writes it.
//!
//! ```text
//! <｜DSML｜tool_calls>
//! <｜DSML｜invoke name="weather">
//! <｜DSML｜parameter name="city" string="true">Catania</｜DSML｜parameter>
//! <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜tool_calls>
//! ```

use crate::json::{Json, quoted};
use crate::tag::{Kind, Tag, held_back, read};

/// A parameter of an earlier call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    /// The value is the text itself, not JSON.
    pub(crate) string: bool,
    pub(crate) value: String,
}

/// The parameters of a call. Arguments that are no JSON object become one parameter named `arguments`.
pub(crate) fn parameters(arguments: &str) -> Vec<Parameter> {
    let members = match serde_json::from_str(arguments) {
        Ok(Json::Object(members)) => members,
        _ => vec![("arguments".to_owned(), Json::String(arguments.to_owned()))],
    };
    let parameter = |(name, value)| match value {
        Json::String(value) => Parameter {
            name,
            string: true,
            value,
        },
        other => Parameter {
            name,
            string: false,
            value: other.to_string(),
        },
    };
    members.into_iter().map(parameter).collect()
}

/// Part of an answer with tools.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Text outside of calls.
    Text(String),
    /// A call begins.
    Begin {
        /// The tool.
        name: String,
    },
    /// More of the call's arguments: put together they are a JSON object.
    Arguments(String),
    /// The call is complete.
    End,
}

/// How well what the model wrote could be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Quality {
    /// No calls.
    #[default]
    None,
    /// As the format says.
    Sound,
    /// Something was missing, or too much, and what was meant is clear.
    Repaired,
    /// Not readable: the client gets the text.
    Malformed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Text,
    /// Between calls.
    Block,
    /// Between the parameters of a call or, deeper, of a parameter made of parameters.
    Members,
    /// Inside a value that is text.
    StringValue,
    /// Inside a value that is JSON.
    JsonValue,
}

/// Longest tag: a name and a little more.
const LONGEST_TAG: usize = 4096;

/// Reads an answer piece by piece; text is held back no longer than it could become markup.
#[derive(Debug)]
pub struct ToolParser {
    state: State,
    held: String,
    /// What stands before the tag names of this block; the model sometimes loses it, or its beginning.
    mark: &'static str,
    /// For each open object: whether it has a member.
    objects: Vec<bool>,
    calls: usize,
    /// The block as it was written, until its first call: what is shown when there is none.
    block: String,
    quality: Quality,
}

impl Default for ToolParser {
    fn default() -> Self {
        Self {
            state: State::Text,
            held: String::new(),
            mark: "",
            objects: Vec::new(),
            calls: 0,
            block: String::new(),
            quality: Quality::None,
        }
    }
}

impl ToolParser {
    /// What is known after more text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.advance(&mut pieces) {}
        pieces
    }

    /// What is left. `complete`: the model ended its turn, so what is open is closed; otherwise it was cut off, and stays open.
    pub fn finish(&mut self, complete: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Text => text(&mut pieces, held),
            State::Block if self.calls == 0 => self.give_up(held, &mut pieces),
            State::Block => self.note(Quality::Repaired),
            State::StringValue => {
                arguments(&mut pieces, escaped(&held));
                if complete {
                    arguments(&mut pieces, "\"".into());
                }
            }
            State::JsonValue if complete => arguments(&mut pieces, self.json_value(&held)),
            State::JsonValue | State::Members => {}
        }
        if complete && !self.objects.is_empty() {
            self.note(Quality::Repaired);
            self.close_call(&mut pieces);
        }
        self.state = State::Text;
        pieces
    }

    /// Whether a call is being written.
    #[must_use]
    pub fn in_block(&self) -> bool {
        self.state != State::Text
    }

    /// How well the answer could be read so far.
    #[must_use]
    pub const fn quality(&self) -> Quality {
        self.quality
    }

    fn note(&mut self, quality: Quality) {
        self.quality = self.quality.max(quality);
    }

    /// One step; whether there may be another.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Text => self.in_text(pieces),
            State::Block | State::Members => self.between(pieces),
            State::StringValue => self.in_string(pieces),
            State::JsonValue => self.in_json(pieces),
        }
    }

    fn in_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Some((at, mark, opener)) = crate::tag::find_block(&self.held) else {
            let kept = held_back(&self.held);
            let rest = self.held.split_off(self.held.len() - kept);
            text(pieces, std::mem::replace(&mut self.held, rest));
            return false;
        };
        // The two line ends before a block belong to it.
        let before = &self.held[..at];
        let before = before
            .strip_suffix("\n\n")
            .or_else(|| before.strip_suffix('\n'))
            .unwrap_or(before);
        text(pieces, before.to_owned());
        self.block = self.held[before.len()..at + opener].to_owned();
        self.held.drain(..at + opener);
        self.mark = mark;
        self.calls = 0;
        self.note(if mark == crate::tag::MARK {
            Quality::Sound
        } else {
            Quality::Repaired
        });
        self.state = State::Block;
        true
    }

    /// Between tags there is only space; anything else is skipped.
    fn between(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let skipped = self.held.len() - self.held.trim_start().len();
        self.drop_front(skipped);
        if self.held.is_empty() {
            return false;
        }
        match read(&self.held, self.mark) {
            Tag::Unfinished if self.held.len() < LONGEST_TAG => false,
            Tag::Whole {
                kind,
                close,
                attributes,
                bytes,
            } => {
                self.drop_front(bytes);
                self.tag(kind, close, &attributes, pieces);
                true
            }
            Tag::Unfinished | Tag::Other => self.skip(pieces),
        }
    }

    /// Takes bytes from the front; they stay known while the block has no call.
    fn drop_front(&mut self, bytes: usize) {
        if self.state == State::Block && self.calls == 0 {
            self.block.push_str(&self.held[..bytes]);
        }
        self.held.drain(..bytes);
    }

    fn tag(&mut self, kind: Kind, close: bool, attributes: &[(String, String)], pieces: &mut Vec<Piece>) {
        let attribute = |name: &str| {
            attributes
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let in_call = self.state == State::Members;
        match (kind, close) {
            (Kind::Invoke, false) if attribute("name").is_some() => {
                if in_call {
                    self.note(Quality::Repaired);
                    self.close_call(pieces);
                }
                pieces.push(Piece::Begin {
                    name: attribute("name").unwrap_or_default(),
                });
                self.calls += 1;
                self.block.clear();
                self.objects = vec![false];
                self.state = State::Members;
            }
            (Kind::Parameter, false) if in_call && attribute("name").is_some() => {
                self.member(&attribute("name").unwrap_or_default(), pieces);
                let string = attribute("string").is_some_and(|string| string == "true");
                self.state = if string {
                    State::StringValue
                } else {
                    State::JsonValue
                };
                if string {
                    arguments(pieces, "\"".into());
                }
            }
            (Kind::Parameter, true) if in_call && self.objects.len() > 1 => self.close_object(pieces),
            (Kind::Invoke, true) if in_call => self.close_call(pieces),
            (Kind::ToolCalls, true) => self.end_block(in_call, pieces),
            _ => self.note(Quality::Repaired),
        }
    }

    fn end_block(&mut self, in_call: bool, pieces: &mut Vec<Piece>) {
        if in_call {
            self.note(Quality::Repaired);
            self.close_call(pieces);
        }
        if self.calls == 0 {
            let held = std::mem::take(&mut self.held);
            self.give_up(held, pieces);
        }
        self.state = State::Text;
    }

    /// Before the first call anything unexpected makes the block text; later it is skipped up to the next tag.
    fn skip(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.calls == 0 {
            let held = std::mem::take(&mut self.held);
            self.give_up(held, pieces);
            return false;
        }
        self.note(Quality::Repaired);
        let first = self.held.chars().next().map_or(0, char::len_utf8);
        let next = self.held[first..]
            .find('<')
            .map_or(self.held.len(), |at| at + first);
        self.held.drain(..next);
        true
    }

    /// The block cannot be read: the client gets it as it is.
    fn give_up(&mut self, held: String, pieces: &mut Vec<Piece>) {
        self.note(Quality::Malformed);
        let whole = std::mem::take(&mut self.block) + &held;
        text(pieces, whole);
        self.state = State::Text;
    }

    fn member(&mut self, name: &str, pieces: &mut Vec<Piece>) {
        let lead = if self.objects.last() == Some(&true) {
            ", "
        } else {
            "{"
        };
        if let Some(has) = self.objects.last_mut() {
            *has = true;
        }
        arguments(pieces, format!("{lead}{}: ", quoted(name)));
    }

    fn close_object(&mut self, pieces: &mut Vec<Piece>) {
        if let Some(has) = self.objects.pop() {
            arguments(pieces, if has { "}" } else { "{}" }.into());
        }
    }

    fn close_call(&mut self, pieces: &mut Vec<Piece>) {
        if self.objects.len() > 1 {
            self.note(Quality::Repaired);
        }
        while !self.objects.is_empty() {
            self.close_object(pieces);
        }
        pieces.push(Piece::End);
        self.state = State::Block;
    }

    fn closer(&self) -> String {
        format!("</{}parameter>", self.mark)
    }

    fn in_string(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let closer = self.closer();
        if let Some(at) = self.held.find(&closer) {
            arguments(pieces, escaped(&self.held[..at]) + "\"");
            self.held.drain(..at + closer.len());
            self.state = State::Members;
            return true;
        }
        let kept = crate::overlap(&self.held, &closer);
        let rest = self.held.split_off(self.held.len() - kept);
        let shown = std::mem::replace(&mut self.held, rest);
        arguments(pieces, escaped(&shown));
        false
    }

    fn in_json(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let opener = format!("<{}parameter", self.mark);
        if self.held.trim_start().starts_with(&opener) {
            // Parameters inside a parameter are an object.
            self.note(Quality::Repaired);
            self.objects.push(false);
            self.state = State::Members;
            return true;
        }
        let closer = self.closer();
        let Some(at) = self.held.find(&closer) else {
            return false;
        };
        let value = self.held[..at].to_owned();
        arguments(pieces, self.json_value(&value));
        self.held.drain(..at + closer.len());
        self.state = State::Members;
        true
    }

    /// A value that is no JSON was meant as text.
    fn json_value(&mut self, value: &str) -> String {
        if serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok() {
            return value.trim().to_owned();
        }
        self.note(Quality::Repaired);
        quoted(value)
    }
}

fn text(pieces: &mut Vec<Piece>, text: String) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

fn arguments(pieces: &mut Vec<Piece>, text: String) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Arguments(last)) => last.push_str(&text),
        _ => pieces.push(Piece::Arguments(text)),
    }
}

/// As inside a JSON string.
fn escaped(text: &str) -> String {
    let quoted = quoted(text);
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests;
