//! From logits to the token that a request may have: bias, penalties, what may come next at all, and what is told of the alternatives.

use std::collections::HashMap;
use std::fmt;

use ds4_kernels::math::exp;
use thiserror::Error;

use crate::sampling::{Sampler, Sampling};

/// Decides which tokens may come next: a grammar, a budget.
pub trait Guide: Send + fmt::Debug {
    /// Sets the logits of tokens that may not come next to negative infinity.
    ///
    /// # Errors
    /// When nothing may come next, or the guide cannot tell.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError>;

    /// Takes note of the chosen token.
    ///
    /// # Errors
    /// When the token was not allowed.
    fn accept(&mut self, token: u32) -> Result<(), GuideError>;
}

/// A guide that cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("constrained decoding: {0}")]
pub struct GuideError(pub String);

/// What a request adds to plain sampling. The default adds nothing and costs nothing.
#[derive(Debug, Default)]
pub struct Shaping {
    /// Added to the logits of some tokens.
    pub bias: Vec<(u32, f32)>,
    /// Taken from a token's logit for each time it was generated.
    pub frequency_penalty: f32,
    /// Taken once from the logit of every token that was generated.
    pub presence_penalty: f32,
    /// Tell this many of the most likely tokens beside the chosen one.
    pub logprobs: Option<usize>,
    /// Which tokens may come next; none: all.
    pub guide: Option<Box<dyn Guide>>,
}

/// How likely the model found a token, before bias, penalties, temperature and guide.
#[derive(Clone, PartialEq, Debug)]
pub struct Logprobs {
    /// Natural logarithm of the chosen token's probability.
    pub chosen: f32,
    /// The most likely tokens and theirs, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// A chosen token.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// When asked for.
    pub logprobs: Option<Logprobs>,
}

/// Sampling with a request's wishes.
#[derive(Debug)]
pub struct Chooser {
    sampler: Sampler,
    shaping: Shaping,
    generated: HashMap<u32, u32>,
}

impl Chooser {
    /// Starts with nothing generated.
    #[must_use]
    pub fn new(sampling: &Sampling, shaping: Shaping) -> Self {
        Self {
            sampler: Sampler::new(sampling),
            shaping,
            generated: HashMap::new(),
        }
    }

    /// The next token.
    ///
    /// # Errors
    /// When the guide has none.
    pub fn choose(&mut self, logits: &[f32]) -> Result<Choice, GuideError> {
        let token = if self.shapes() {
            let mut shaped = logits.to_vec();
            self.shape(&mut shaped);
            if let Some(guide) = &mut self.shaping.guide {
                guide.restrict(&mut shaped)?;
            }
            self.sampler.sample(&shaped)
        } else {
            self.sampler.sample(logits)
        };
        if let Some(guide) = &mut self.shaping.guide {
            guide.accept(token)?;
        }
        if self.penalises() {
            *self.generated.entry(token).or_default() += 1;
        }
        let logprobs = self.shaping.logprobs.map(|top| logprobs(logits, token, top));
        Ok(Choice { token, logprobs })
    }

    fn penalises(&self) -> bool {
        self.shaping.frequency_penalty != 0.0 || self.shaping.presence_penalty != 0.0
    }

    fn shapes(&self) -> bool {
        self.penalises() || self.shaping.guide.is_some() || !self.shaping.bias.is_empty()
    }

    fn shape(&self, logits: &mut [f32]) {
        for (token, bias) in &self.shaping.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in &self.generated {
            if let Some(logit) = logits.get_mut(*token as usize) {
                #[allow(clippy::cast_precision_loss)] // contexts are below 2^24 tokens
                let often = *count as f32;
                *logit -= often * self.shaping.frequency_penalty + self.shaping.presence_penalty;
            }
        }
    }
}

/// Of a softmax over all finite logits.
fn logprobs(logits: &[f32], token: u32, top: usize) -> Logprobs {
    let finite = || logits.iter().filter(|logit| logit.is_finite());
    let best = finite().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = finite().map(|logit| exp(logit - best)).sum();
    let base = best + libm::logf(sum);
    let mut ranked: Vec<(u32, f32)> = (0..)
        .zip(logits.iter().copied())
        .filter(|(_, logit)| logit.is_finite())
        .collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top < ranked.len() {
        ranked.select_nth_unstable_by(top, order);
        ranked.truncate(top);
    }
    ranked.sort_by(order);
    Logprobs {
        chosen: logits
            .get(token as usize)
            .map_or(f32::NEG_INFINITY, |logit| logit - base),
        top: ranked
            .into_iter()
            .map(|(token, logit)| (token, logit - base))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Only(u32);

    impl Guide for Only {
        fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
            let kept = logits[self.0 as usize];
            logits.fill(f32::NEG_INFINITY);
            logits[self.0 as usize] = kept;
            Ok(())
        }

        fn accept(&mut self, token: u32) -> Result<(), GuideError> {
            if token == self.0 {
                return Ok(());
            }
            Err(GuideError(format!("token: expected {}, found {token}", self.0)))
        }
    }

    fn chosen(shaping: Shaping, logits: &[f32], times: usize) -> Vec<u32> {
        let mut chooser = Chooser::new(&Sampling::GREEDY, shaping);
        (0..times)
            .map(|_| chooser.choose(logits).expect("a token").token)
            .collect()
    }

    #[test]
    fn bias_penalties_and_guides_change_the_choice() {
        let logits = [3.0, 2.0, 1.0];
        assert_eq!(chosen(Shaping::default(), &logits, 3), [0, 0, 0]);
        let bias = vec![(2, 5.0), (900, 1.0)];
        assert_eq!(
            chosen(
                Shaping {
                    bias,
                    ..Shaping::default()
                },
                &logits,
                2
            ),
            [2, 2]
        );
        let frequency = Shaping {
            frequency_penalty: 0.6,
            ..Shaping::default()
        };
        assert_eq!(chosen(frequency, &logits, 5), [0, 0, 1, 0, 1]);
        let presence = Shaping {
            presence_penalty: 1.5,
            ..Shaping::default()
        };
        assert_eq!(chosen(presence, &logits, 4), [0, 1, 0, 0]);
        let guide: Option<Box<dyn Guide>> = Some(Box::new(Only(2)));
        assert_eq!(
            chosen(
                Shaping {
                    guide,
                    ..Shaping::default()
                },
                &logits,
                2
            ),
            [2, 2]
        );
    }

    #[test]
    fn logprobs_are_the_models_own_and_sum_to_one() {
        let shaping = Shaping {
            bias: vec![(1, 9.0)],
            logprobs: Some(2),
            ..Shaping::default()
        };
        let mut chooser = Chooser::new(&Sampling::GREEDY, shaping);
        let logits = [1.0, 0.0, f32::NAN, 0.5];
        let choice = chooser.choose(&logits).expect("a token");
        let logprobs = choice.logprobs.expect("asked for");
        assert_eq!((choice.token, logprobs.top[0].0, logprobs.top[1].0), (1, 0, 3));
        let sum: f32 = logprobs.top.iter().map(|(_, p)| p.exp()).sum::<f32>() + logprobs.chosen.exp();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
}
