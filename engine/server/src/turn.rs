//! From tokens to the parts of an answer: reasoning, text, tool calls.

use ds4_model::choice::Logprobs;
use ds4_runtime::FinishReason;
use ds4_tokenizer::dsml::{Piece, Quality, ToolParser};
use ds4_tokenizer::{Decoder, Special, Tokenizer};

use crate::ask::Ask;
use crate::stop::StopMatcher;

/// Part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Reasoning(String),
    Text(String),
    /// A call begins; calls are numbered from 0.
    Call {
        name: String,
    },
    /// More of the last call's arguments.
    Arguments(String),
    CallEnd,
}

/// Why an answer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Finish {
    /// The model ended its turn.
    Stop,
    /// This stop string came.
    StopString(String),
    /// As many tokens as asked for.
    Length,
    /// The model waits for tools.
    ToolCalls,
}

/// A token of the visible answer with what was likely in its place.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Scored {
    pub(crate) token: u32,
    pub(crate) logprobs: Logprobs,
}

/// An answer in the making: pure, so that it can be tested token by token.
pub(crate) struct Turn<'a> {
    decoder: Decoder<'a>,
    think_close: Option<u32>,
    /// Turn tokens: a model that writes one has lost its way, and clients never see them.
    hidden: Vec<u32>,
    reasoning: bool,
    /// Only where tools were offered: otherwise markup is text.
    tools: Option<ToolParser>,
    stops: StopMatcher,
    parallel_calls: bool,
    calls: usize,
    scores: Vec<Scored>,
    ended: Option<Finish>,
    /// Tokens generated.
    pub(crate) completion: u32,
    /// Of these, reasoning.
    pub(crate) reasoned: u32,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, ask: &Ask) -> Self {
        Self {
            decoder: tokenizer.decoder(),
            think_close: tokenizer.special(Special::ThinkClose),
            hidden: [Special::Bos, Special::User, Special::Assistant]
                .iter()
                .filter_map(|special| tokenizer.special(*special))
                .collect(),
            reasoning: ask.opens_reasoning(),
            tools: (!ask.tools().is_empty()).then(ToolParser::default),
            stops: StopMatcher::new(ask.wishes.stops.clone()),
            parallel_calls: ask.parallel_calls,
            calls: 0,
            scores: Vec::new(),
            ended: None,
            completion: 0,
            reasoned: 0,
        }
    }

    /// Why no more is wanted; none while more is.
    pub(crate) const fn ended(&self) -> Option<&Finish> {
        self.ended.as_ref()
    }

    /// How well calls could be read.
    pub(crate) fn quality(&self) -> Quality {
        self.tools.as_ref().map_or(Quality::None, ToolParser::quality)
    }

    /// Scores since the last time, of tokens of the visible answer.
    pub(crate) fn take_scores(&mut self) -> Vec<Scored> {
        std::mem::take(&mut self.scores)
    }

    /// One more token.
    pub(crate) fn token(&mut self, token: u32, logprobs: Option<Logprobs>) -> Vec<Part> {
        self.completion += 1;
        if self.reasoning {
            self.reasoned += 1;
            if Some(token) == self.think_close {
                let mut parts = self.rest_of_reasoning();
                self.reasoning = false;
                parts.extend(self.read(String::new()));
                return parts;
            }
        } else {
            let in_call = self.tools.as_ref().is_some_and(ToolParser::in_block);
            let logprobs = logprobs.filter(|_| !in_call);
            self.scores
                .extend(logprobs.map(|logprobs| Scored { token, logprobs }));
        }
        if self.hidden.contains(&token) {
            return Vec::new();
        }
        let text = self.decoder.push(token);
        self.read(text)
    }

    /// The engine has ended.
    pub(crate) fn finish(&mut self, reason: FinishReason) -> Vec<Part> {
        let complete = reason == FinishReason::Stop;
        let rest = self.decoder.finish();
        let mut parts = self.read(rest);
        if self.ended.is_none() {
            let pieces = self
                .tools
                .as_mut()
                .map(|tools| tools.finish(complete))
                .unwrap_or_default();
            parts.extend(self.parts(pieces));
        }
        if self.ended.is_none() {
            parts.extend(text(self.stops.finish()));
            self.ended = Some(match (complete, self.calls) {
                (false, _) => Finish::Length,
                (true, 0) => Finish::Stop,
                (true, _) => Finish::ToolCalls,
            });
        }
        parts
    }

    /// Reasoning is over: what looked like the beginning of a call was none.
    fn rest_of_reasoning(&mut self) -> Vec<Part> {
        let rest = self.decoder.finish();
        let mut parts = self.read(rest);
        let pieces = self
            .tools
            .as_mut()
            .map(|tools| tools.finish(true))
            .unwrap_or_default();
        parts.extend(self.parts(pieces));
        parts
    }

    fn read(&mut self, shown: String) -> Vec<Part> {
        let pieces = match &mut self.tools {
            Some(tools) => tools.push(&shown),
            None if shown.is_empty() => Vec::new(),
            None => vec![Piece::Text(shown)],
        };
        self.parts(pieces)
    }

    fn parts(&mut self, pieces: Vec<Piece>) -> Vec<Part> {
        let mut parts = Vec::new();
        for piece in pieces {
            if self.ended.is_some() {
                break;
            }
            self.part(piece, &mut parts);
        }
        parts
    }

    fn part(&mut self, piece: Piece, parts: &mut Vec<Part>) {
        match piece {
            Piece::Text(text) if self.reasoning => parts.push(Part::Reasoning(text)),
            Piece::Text(shown) => {
                let shown = self.stops.push(&shown);
                self.ended = self
                    .stops
                    .stopped()
                    .map(|stop| Finish::StopString(stop.to_owned()));
                parts.extend(text(shown));
            }
            Piece::Begin { name } => {
                // A call inside of reasoning ends it: the model never comes back to it.
                self.reasoning = false;
                parts.extend(text(self.stops.finish()));
                self.calls += 1;
                parts.push(Part::Call { name });
            }
            Piece::Arguments(text) => parts.push(Part::Arguments(text)),
            Piece::End => {
                parts.push(Part::CallEnd);
                if !self.parallel_calls {
                    self.ended = Some(Finish::ToolCalls);
                }
            }
        }
    }
}

fn text(text: String) -> Option<Part> {
    (!text.is_empty()).then_some(Part::Text(text))
}

#[cfg(test)]
mod tests;
