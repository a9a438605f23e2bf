//! From logits to a token.

use ds4_kernels::math::exp;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 or less: the most likely token.
    pub temperature: f32,
    /// Smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens below this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: u32,
    /// Equal seeds and logits give equal tokens.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        seed: 0,
    };
}

/// Sampling with the state of its generator.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    /// Starts from the seed; 0 stands for a fixed odd constant, since the generator cannot leave zero.
    #[must_use]
    pub const fn new(sampling: &Sampling) -> Self {
        let state = if sampling.seed == 0 {
            0x9e37_79b9_7f4a_7c15
        } else {
            sampling.seed
        };
        Self {
            sampling: *sampling,
            state,
        }
    }

    /// The next token. Logits that are no numbers are never chosen.
    #[must_use]
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return greedy(logits);
        }
        let candidates = self.candidates(logits);
        let total: f32 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = self.uniform() * total;
        for (token, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return *token;
            }
        }
        candidates
            .last()
            .map_or_else(|| greedy(logits), |(token, _)| *token)
    }

    /// Tokens that may be chosen with their weights, most likely first, ties by id.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let Sampling {
            temperature,
            top_p,
            min_p,
            top_k,
            seed: _,
        } = self.sampling;
        let mut all: Vec<(u32, f32)> = (0..)
            .zip(logits.iter().copied())
            .filter(|(_, logit)| logit.is_finite())
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            all.truncate(top_k as usize);
        }
        let Some(best) = all.first().map(|(_, logit)| *logit) else {
            return all;
        };
        all.iter_mut()
            .for_each(|(_, logit)| *logit = exp((*logit - best) / temperature));
        all.retain(|(_, weight)| *weight >= min_p);
        let enough = all.iter().map(|(_, weight)| weight).sum::<f32>() * top_p;
        let mut sum = 0.0;
        let kept = all.iter().take_while(|(_, weight)| {
            let open = sum < enough;
            sum += weight;
            open
        });
        let kept = kept.count().max(1);
        all.truncate(kept);
        all
    }

    /// xorshift64*, its upper 24 bits as a number in [0, 1).
    fn uniform(&mut self) -> f32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        #[allow(clippy::cast_precision_loss)] // 24 bits fit
        let number = bits as f32 / 16_777_216.0;
        number
    }
}

/// The first of the largest logits.
pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let best = (0..)
        .zip(logits)
        .fold((0, f32::NEG_INFINITY), |best, (i, logit)| {
            if *logit > best.1 { (i, *logit) } else { best }
        });
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling);
        (0..times).map(|_| sampler.sample(logits)).collect()
    }

    #[test]
    fn no_temperature_gives_the_first_maximum() {
        assert_eq!(draw(Sampling::GREEDY, &[0.0, 2.0, 2.0, f32::NAN], 3), [1, 1, 1]);
    }

    #[test]
    fn equal_seeds_draw_equal_tokens_and_others_do_not() {
        let sampling = Sampling {
            temperature: 1.0,
            ..Sampling::GREEDY
        };
        let logits = [0.0; 50];
        let first = draw(Sampling { seed: 7, ..sampling }, &logits, 20);
        assert_eq!(first, draw(Sampling { seed: 7, ..sampling }, &logits, 20));
        assert_ne!(first, draw(Sampling { seed: 8, ..sampling }, &logits, 20));
    }

    #[test]
    fn the_cuts_keep_what_they_say() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let hot = Sampling {
            temperature: 5.0,
            seed: 3,
            ..Sampling::GREEDY
        };
        let most = |sampling| draw(sampling, &logits, 200).into_iter().max();
        assert_eq!(most(hot), Some(3));
        assert_eq!(most(Sampling { top_k: 2, ..hot }), Some(1));
        assert_eq!(most(Sampling { top_p: 0.01, ..hot }), Some(0));
        assert_eq!(most(Sampling { min_p: 0.7, ..hot }), Some(1));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let sampling = Sampling {
            temperature: 1.0,
            seed: 1,
            ..Sampling::GREEDY
        };
        let drawn = draw(sampling, &[(3.0_f32).ln(), 0.0], 4000);
        let share = drawn.iter().filter(|token| **token == 0).count() as f32 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
    }
}
