//! One request's generations as one sequence of happenings.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use ds4_model::choice::Logprobs;
use ds4_runtime::{Decision, Event, Flow, Generate, Timings};
use ds4_tokenizer::Tokenizer;
use ds4_tokenizer::dsml::Quality;
use futures::Stream;
use futures::stream::{StreamExt, unfold};
use tracing::Span;

use crate::app::{App, Loaded};
use crate::ask::Ask;
use crate::dialect::{Score, Usage};
use crate::error::ApiError;
use crate::guide;
use crate::turn::{Finish, Part, Turn};

/// What happened next.
#[derive(Debug)]
pub(crate) enum Happening {
    /// Prompt tokens computed so far, of how many.
    Prefill(u32, u32),
    Decided(Decision),
    Parts(usize, Vec<Part>, Vec<Score>),
    Ended(usize, Finish, Vec<Score>),
}

/// What the request shares the machine by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) flow: Flow,
    pub(crate) deadline: Option<Instant>,
}

type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

struct Choice<'a> {
    turn: Turn<'a>,
    /// None once it has ended; dropping them cancels the work.
    events: Option<Events>,
    logprobs: Option<Logprobs>,
}

/// The answers in the making. Dropping them cancels the work everywhere.
pub(crate) struct Drive<'a> {
    tokenizer: &'a Tokenizer,
    choices: Vec<Choice<'a>>,
    /// Known and not yet told.
    waiting: VecDeque<Happening>,
    prompt: u32,
    cached: u32,
    /// Who is asked first next time.
    first: usize,
    /// Of the answer that ended last.
    pub(crate) timings: Option<Timings>,
}

impl<'a> Drive<'a> {
    /// Starts all answers.
    pub(crate) fn start(
        app: &'a App,
        loaded: &'a Loaded,
        ask: &Ask,
        prompt: Vec<u32>,
        standing: Standing,
        span: &Span,
    ) -> Result<Self, ApiError> {
        let room = loaded
            .engine
            .options()
            .max_tokens
            .saturating_sub(prompt.len() as u64)
            .max(1);
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let start = |i| {
            let mut shaping = ask.wishes.shaping();
            shaping.guide = guide::build(app, loaded, ask)?;
            let generation = loaded.engine.generate(Generate {
                prompt: prompt.clone(),
                sampling: ask.wishes.sampling(i),
                shaping,
                max_tokens: ask.wishes.max_tokens.unwrap_or(room),
                ignore_eos: ask.wishes.ignore_eos,
                flow: standing.flow,
                deadline: standing.deadline,
                parent: span.clone(),
            });
            let events = unfold(generation, |mut generation| async move {
                let event = generation.next().await?;
                Some((event, generation))
            });
            Ok(Choice {
                turn: Turn::new(&loaded.tokenizer, ask),
                events: Some(Box::pin(events)),
                logprobs: None,
            })
        };
        Ok(Self {
            tokenizer: &loaded.tokenizer,
            choices: (0..ask.choices).map(start).collect::<Result<_, ApiError>>()?,
            waiting: VecDeque::new(),
            // The engine refuses prompts beyond its context, which is below 2^32.
            prompt: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            cached: 0,
            first: 0,
            timings: None,
        })
    }

    pub(crate) fn usage(&self) -> Usage {
        let sum = |count: fn(&Turn<'a>) -> u32| self.choices.iter().map(|choice| count(&choice.turn)).sum();
        Usage {
            prompt: self.prompt,
            cached: self.cached,
            completion: sum(|turn| turn.completion),
            reasoned: sum(|turn| turn.reasoned),
        }
    }

    /// How well tool calls could be read: the worst of all answers.
    pub(crate) fn quality(&self) -> Quality {
        self.choices
            .iter()
            .map(|choice| choice.turn.quality())
            .max()
            .unwrap_or_default()
    }

    /// The next happening; none after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Happening>, ApiError> {
        loop {
            if let Some(happening) = self.waiting.pop_front() {
                return Ok(Some(happening));
            }
            if self.choices.iter().all(|choice| choice.events.is_none()) {
                return Ok(None);
            }
            let (at, event) = poll_fn(|context| self.poll(context)).await;
            match event {
                Some(event) => self.take(at, event)?,
                None => return Err(ApiError::internal("the engine ended without a word")),
            }
        }
    }

    /// The next event of whichever answer has one; all have their turn.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(usize, Option<Event>)> {
        let count = self.choices.len();
        for i in (0..count).map(|i| (self.first + i) % count) {
            let Some(events) = &mut self.choices[i].events else {
                continue;
            };
            if let Poll::Ready(event) = events.poll_next_unpin(context) {
                self.first = (i + 1) % count;
                return Poll::Ready((i, event));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, at: usize, event: Event) -> Result<(), ApiError> {
        let choice = &mut self.choices[at];
        let parts = match event {
            Event::Prefill { done, total } => {
                self.waiting.push_back(Happening::Prefill(done, total));
                return Ok(());
            }
            Event::Cached(tokens) => {
                self.cached = tokens;
                return Ok(());
            }
            Event::Decided(decision) => {
                self.waiting.push_back(Happening::Decided(decision));
                return Ok(());
            }
            Event::Logprobs(logprobs) => {
                choice.logprobs = Some(logprobs);
                return Ok(());
            }
            Event::Token(token) => choice.turn.token(token, choice.logprobs.take()),
            Event::Finished(finished) => {
                self.timings = Some(finished.timings);
                choice.turn.finish(finished.reason)
            }
            Event::Failed(error) => return Err(ApiError::from(&error)),
        };
        self.tell(at, parts);
        Ok(())
    }

    fn tell(&mut self, at: usize, parts: Vec<Part>) {
        let choice = &mut self.choices[at];
        let ended = choice.turn.ended().cloned();
        let score = |scored: &_| Score::new(self.tokenizer, scored);
        // Scores wait for the text that they belong to.
        let shows = parts.iter().any(|part| matches!(part, Part::Text(_)));
        let scores = if shows || ended.is_some() {
            choice.turn.take_scores()
        } else {
            Vec::new()
        };
        let mut scores: Vec<Score> = scores.iter().map(score).collect();
        if !parts.is_empty() {
            self.waiting
                .push_back(Happening::Parts(at, parts, std::mem::take(&mut scores)));
        }
        if let Some(finish) = ended {
            // Nothing more is wanted: dropping the generation ends the work.
            choice.events = None;
            self.waiting.push_back(Happening::Ended(at, finish, scores));
        }
    }
}
