//! A pass of an answer that runs alone, over its token and a guess of the one after it.
//!
//! The request's own sampler chooses as ever, from the logits after its token; the guess is right when it is what was chosen, and then the logits
//! after it are there as well. So tokens, the draws of the sampler and the session are those of passes of one token each, whatever is guessed.
//!
//! Answers that share a pass read the weights together, which pays more than a guess, and prompts that wait are computed beside them: neither
//! guesses. What the head sees of a session begins anew after such a pass.

use std::sync::Arc;

use ds4_model::{Drafter, Hidden, ModelError, ModelSlice};
use ds4_telemetry::metrics::Metrics;

use super::{Answer, Passes};

/// What a pass over a token and a guess gave.
struct Tried {
    guess: u32,
    /// Streams of both.
    hidden: Hidden,
    /// What may follow each of them.
    logits: Vec<f32>,
}

impl Passes {
    /// Whether the next pass has a guess in it.
    pub(super) fn guesses(&self) -> bool {
        let alone = self.prompts.is_empty() && self.answers.len() == 1;
        alone && self.slice.drafter().is_some() && self.answers.iter().all(Answer::may_guess)
    }

    /// A pass of the only answer. What panics takes it along.
    pub(super) fn guess(&mut self) {
        let slice = Arc::clone(&self.slice);
        let (Some(drafter), Some(mut answer)) = (slice.drafter(), self.answers.pop()) else {
            return;
        };
        let goes_on = match tried(&*slice, drafter, &mut answer) {
            Ok(Some(tried)) => settled(tried, answer),
            Ok(None) => Some(answer),
            Err(error) => {
                answer.fail(&error);
                None
            }
        };
        self.answers.extend(goes_on);
    }
}

fn tried(
    slice: &dyn ModelSlice,
    drafter: &dyn Drafter,
    answer: &mut Answer,
) -> Result<Option<Tried>, ModelError> {
    let Some(token) = answer.chosen().copied() else {
        return Ok(None);
    };
    let guess = answer.guess(drafter, token)?;
    let (hidden, logits) = slice.forward_guess(token, guess, answer.kv_mut())?;
    Ok(Some(Tried {
        guess,
        hidden,
        logits,
    }))
}

/// Tells the chosen token, and the one after the guess when the guess was right; the answer while it goes on.
fn settled(tried: Tried, mut answer: Answer) -> Option<Answer> {
    let (after_token, after_guess) = tried.logits.split_at(tried.logits.len() / 2);
    answer.computed(tried.hidden.token(0));
    answer.choose(after_token);
    let right = answer.goes_on_with(tried.guess);
    answer.count_guess(right);
    Metrics::global().draft_tokens.inc();
    if !right {
        if let Err(error) = answer.kv_mut().undo_trial() {
            answer.fail(&error);
            return None;
        }
        return answer.told();
    }
    Metrics::global().draft_tokens_accepted.inc();
    answer.kv_mut().keep_trial();
    let mut answer = answer.told()?;
    answer.computed(tried.hidden.token(1));
    answer.choose(after_guess);
    answer.told()
}
