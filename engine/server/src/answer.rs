//! From the engine's events to text.

use ds4_runtime::{Decision, EngineError, Event, FinishReason, Generation};
use ds4_tokenizer::{Decoder, Special, Tokenizer};

use crate::response::{Delta, Usage};
use crate::stop::StopMatcher;

/// One step of an answer.
#[derive(Debug)]
pub(crate) enum Step {
    /// Text to show; may be none yet.
    Deltas(Vec<Delta>),
    /// The end.
    Done(FinishReason),
}

/// An answer in the making. Dropping it cancels the work.
pub(crate) struct Answer<'a> {
    generation: Option<Generation>,
    decoder: Decoder<'a>,
    stops: StopMatcher,
    think_close: Option<u32>,
    reasoning: bool,
    pub(crate) usage: Usage,
    ended: Option<FinishReason>,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        generation: Generation,
        stops: Vec<String>,
        reasoning: bool,
        prompt: u32,
    ) -> Self {
        Self {
            generation: Some(generation),
            decoder: tokenizer.decoder(),
            stops: StopMatcher::new(stops),
            think_close: tokenizer.special(Special::ThinkClose),
            reasoning,
            usage: Usage {
                prompt,
                ..Usage::default()
            },
            ended: None,
        }
    }

    async fn event(&mut self) -> Result<Event, EngineError> {
        let lost = || EngineError::Internal("the engine ended without a word".into());
        match &mut self.generation {
            Some(generation) => generation.next().await.ok_or_else(lost),
            None => Err(lost()),
        }
    }

    /// Waits until it is known how the prompt was computed.
    pub(crate) async fn decision(&mut self) -> Result<Decision, EngineError> {
        loop {
            match self.event().await? {
                Event::Decided(decision) => return Ok(decision),
                Event::Failed(error) => return Err(error),
                Event::Prefill { .. } | Event::Logprobs(_) | Event::Token(_) | Event::Finished(_) => {}
            }
        }
    }

    /// The next step.
    pub(crate) async fn step(&mut self) -> Result<Step, EngineError> {
        if let Some(reason) = self.ended {
            return Ok(Step::Done(reason));
        }
        match self.event().await? {
            Event::Failed(error) => Err(error),
            Event::Finished(finished) => {
                self.usage.cached = finished.cached_tokens;
                self.ended = Some(finished.reason);
                let mut text = self.decoder.finish();
                text = self.stops.push(&text);
                text.push_str(&self.stops.finish());
                Ok(Step::Deltas(self.delta(text)))
            }
            Event::Token(token) => Ok(Step::Deltas(self.token(token))),
            Event::Prefill { .. } | Event::Logprobs(_) | Event::Decided(_) => Ok(Step::Deltas(Vec::new())),
        }
    }

    fn token(&mut self, token: u32) -> Vec<Delta> {
        self.usage.completion += 1;
        if self.reasoning && Some(token) == self.think_close {
            let rest = self.decoder.finish();
            let deltas = self.delta(rest);
            self.reasoning = false;
            return deltas;
        }
        let text = self.decoder.push(token);
        if self.reasoning {
            return self.delta(text);
        }
        let shown = self.stops.push(&text);
        if self.stops.stopped() {
            // Nothing more is wanted: dropping the generation ends the work.
            self.generation = None;
            self.ended = Some(FinishReason::Stop);
        }
        self.delta(shown)
    }

    fn delta(&self, text: String) -> Vec<Delta> {
        match (text.is_empty(), self.reasoning) {
            (true, _) => Vec::new(),
            (false, true) => vec![Delta::Reasoning(text)],
            (false, false) => vec![Delta::Text(text)],
        }
    }
}
