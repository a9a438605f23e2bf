//! What the compute thread works on: running answers, a token each in every pass, and pieces of the prompts that wait. With a draft head an answer
//! that runs alone has two tokens in a pass when the head guesses right.
//!
//! Sessions that share a pass share weights and nothing else, so who joins when changes no token.

mod answer;
mod draft;
mod prompt;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_model::{Hidden, ModelError, ModelSlice, Part};

pub(super) use self::answer::{Answer, End, Until};
pub(crate) use self::prompt::{Chunk, Member};
use super::schedule::{Kind, Pace, Piece, Waiting};
use crate::compute::{Compute, Lost, Work};
use crate::host::now;

/// A prompt that has just been looked up has its first chunk here within this time, and one that has just ended is an answer: hardly more than the
/// two threads need to hear of each other.
const MOMENT: Duration = Duration::from_millis(5);

/// Answers and prompts in the making.
pub(crate) struct Passes {
    slice: Arc<dyn ModelSlice>,
    pace: Pace,
    answers: Vec<Answer>,
    prompts: Vec<Chunk>,
    /// A prompt that goes before others when its next step comes by then.
    expected: Option<(Arc<Vec<u32>>, Instant)>,
}

/// A chunk whose model failed, with whatever else was in the pass.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Uncomputed(String);

/// Pieces of prompts that take part in a pass: which, and how many tokens of it.
type Pieces = Vec<(Chunk, usize)>;

impl Passes {
    /// Nothing to do yet. `stretch`: how many times as long as alone a token of an answer may take for the sake of prompts.
    pub(super) fn new(slice: Arc<dyn ModelSlice>, stretch: f64) -> Self {
        Self {
            slice,
            pace: Pace::new(stretch),
            answers: Vec::new(),
            prompts: Vec::new(),
            expected: None,
        }
    }

    /// Those whose client has left, whose time is up or who wait for a slow client take no part.
    fn sweep(&mut self) {
        self.prompts.retain(Chunk::is_wanted);
        let time = now();
        let answers = std::mem::take(&mut self.answers).into_iter();
        self.answers = answers.filter_map(|answer| answer.ready(time)).collect();
    }

    /// Takes the pieces out that go next.
    fn choose(&mut self) -> Pieces {
        let mut waiting: Vec<Waiting> = self.prompts.iter().map(Chunk::waiting).collect();
        let pieces = self.pace.choose(self.answers.len(), &mut waiting);
        let mut chosen = Vec::new();
        let prompts = std::mem::take(&mut self.prompts);
        for (at, (mut chunk, waiting)) in prompts.into_iter().zip(waiting).enumerate() {
            chunk.passed = waiting.passed;
            match pieces.iter().find(|piece| piece.prompt == at) {
                Some(piece) => chosen.push((chunk, piece.tokens)),
                None => self.prompts.push(chunk),
            }
        }
        chosen
    }

    /// Answers and pieces through all layers at once. What panics takes its parts along; the others wait in `self`.
    fn together(&mut self, mut pieces: Pieces) {
        let (started, mut answers) = (now(), std::mem::take(&mut self.answers));
        if answers.is_empty() && pieces.is_empty() {
            return;
        }
        // The pass of an answer's first token has only the head to compute.
        let usual = answers.iter().all(|answer| answer.chosen().is_some());
        let done: Vec<Piece> = pieces
            .iter()
            .map(|(chunk, tokens)| chunk.piece(*tokens))
            .collect();
        let computed = forward(&*self.slice, &mut answers, &mut pieces)
            .and_then(|()| choose_tokens(&*self.slice, &mut answers));
        if let Err(error) = computed {
            answers.into_iter().for_each(|answer| answer.fail(&error));
            pieces.into_iter().for_each(|(chunk, _)| chunk.fail(&error));
            return;
        }
        if usual {
            self.pace
                .passed(answers.len(), &done, started.elapsed().as_secs_f64());
        }
        self.answers = answers.into_iter().filter_map(Answer::told).collect();
        pieces.into_iter().for_each(|(chunk, _)| self.settle(chunk));
    }

    /// A piece through the layers after the stages'.
    fn apart(&mut self, mut chunk: Chunk, tokens: usize) {
        let (started, done) = (now(), chunk.piece(tokens));
        if let Err(error) = chunk.forward(&*self.slice, tokens) {
            return chunk.fail(&error);
        }
        self.pace
            .measured(self.answers.len(), done, started.elapsed().as_secs_f64());
        self.settle(chunk);
    }

    fn settle(&mut self, chunk: Chunk) {
        if !chunk.is_done() {
            return self.prompts.push(chunk);
        }
        if chunk.kind() == Kind::Whole && chunk.ends_prompt() {
            self.expect(chunk.prompt());
        }
        chunk.finish();
    }

    fn expect(&mut self, prompt: &Arc<Vec<u32>>) {
        self.expected = Some((Arc::clone(prompt), now() + MOMENT));
    }
}

impl Work for Passes {
    fn due(&self) -> Option<Duration> {
        if self.answers.is_empty() && self.prompts.is_empty() {
            return None;
        }
        let moment = self.expected.as_ref().filter(|_| self.answers.is_empty());
        Some(moment.map_or(Duration::ZERO, |(_, until)| {
            until.saturating_duration_since(now())
        }))
    }

    fn part(&mut self) {
        if self.due() != Some(Duration::ZERO) {
            // The job that came meanwhile was not the one that is expected.
            return;
        }
        self.expected = None;
        self.sweep();
        if self.guesses() {
            return self.guess();
        }
        let (whole, own): (Pieces, Pieces) = self
            .choose()
            .into_iter()
            .partition(|(chunk, _)| chunk.kind() == Kind::Whole);
        self.together(whole);
        own.into_iter()
            .for_each(|(chunk, tokens)| self.apart(chunk, tokens));
    }
}

/// The last token of every answer that has one, and the pieces, through all layers.
fn forward(slice: &dyn ModelSlice, answers: &mut [Answer], pieces: &mut Pieces) -> Result<(), ModelError> {
    let chosen = answers.iter().filter_map(Answer::chosen);
    let prompts = pieces.iter().flat_map(|(chunk, tokens)| chunk.next(*tokens));
    let tokens: Vec<u32> = chosen.chain(prompts).copied().collect();
    if tokens.is_empty() {
        return Ok(());
    }
    let mut hidden = slice.embed(&tokens)?;
    through_all(slice, answers, pieces, &mut hidden)?;
    let mut rows = hidden.as_slice();
    let width = hidden.width();
    let mut take = |tokens: usize| rows.split_off(..tokens * width).unwrap_or_default();
    answers
        .iter_mut()
        .filter(|answer| answer.chosen().is_some())
        .for_each(|answer| answer.advance(take(1)));
    pieces
        .iter_mut()
        .for_each(|(chunk, tokens)| chunk.advance(take(*tokens), *tokens));
    Ok(())
}

fn through_all(
    slice: &dyn ModelSlice,
    answers: &mut [Answer],
    pieces: &Pieces,
    hidden: &mut Hidden,
) -> Result<(), ModelError> {
    let mut lent: Vec<_> = pieces.iter().map(|(chunk, _)| chunk.own()).collect();
    let of_prompts = pieces.iter().zip(&mut lent).map(|((chunk, tokens), kv)| Part {
        tokens: chunk.next(*tokens),
        kv,
    });
    let of_answers = answers.iter_mut().filter_map(Answer::part);
    let mut parts: Vec<Part<'_>> = of_answers.chain(of_prompts).collect();
    slice.forward_batch(&mut parts, hidden)
}

/// The head, for all answers at once, and each one's choice.
fn choose_tokens(slice: &dyn ModelSlice, answers: &mut [Answer]) -> Result<(), ModelError> {
    if answers.is_empty() {
        return Ok(());
    }
    let last: Vec<f32> = answers.iter().flat_map(Answer::last).copied().collect();
    let width = slice.info().config.hidden_width();
    let hidden =
        Hidden::from_vec(width, last).ok_or_else(|| slice.info().lacks("hidden states of width 0"))?;
    let logits = slice.logits_batch(&hidden, &(0..answers.len()).collect::<Vec<_>>())?;
    let each = logits.chunks_exact(slice.info().config.n_vocab);
    answers
        .iter_mut()
        .zip(each)
        .for_each(|(answer, logits)| answer.choose(logits));
    Ok(())
}

impl Compute<Passes> {
    /// An answer takes part from now on.
    pub(super) fn join(&self, answer: Answer) {
        self.change(|passes| {
            passes.expected = None;
            passes.answers.push(answer);
        });
    }

    /// The next step of this prompt comes in a moment: no other prompt is to be in its way then.
    pub(super) fn expect(&self, prompt: &Arc<Vec<u32>>) {
        let prompt = Arc::clone(prompt);
        self.change(move |passes| passes.expect(&prompt));
    }

    /// Computes a chunk of a prompt, piece by piece as its turn comes; its streams come back.
    pub(crate) async fn chunk(
        &self,
        chunk: impl FnOnce(prompt::Done) -> Chunk,
    ) -> Result<Hidden, Uncomputed> {
        let (done, computed) = tokio::sync::oneshot::channel();
        let chunk = chunk(done);
        self.change(move |passes: &mut Passes| {
            let ours = |(expected, _): &mut (Arc<_>, _)| Arc::ptr_eq(expected, chunk.prompt());
            passes.expected.take_if(ours);
            passes.prompts.push(chunk);
        });
        computed.await.map_err(|_| Uncomputed(Lost.to_string()))?
    }
}
