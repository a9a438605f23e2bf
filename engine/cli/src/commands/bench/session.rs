//! Sessions over random tokens, timed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ds4_model::sampling::{Sampler, Sampling};
use ds4_model::{CompleteKv, Hidden, ModelSlice, Part};

/// One timed piece of a prefill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Tokens before it.
    pub(crate) depth: usize,
    /// Tokens in it.
    pub(crate) tokens: usize,
    /// What it took.
    pub(crate) took: Duration,
}

/// Tokens generated with guesses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Guessed {
    pub(crate) tokens: usize,
    pub(crate) took: Duration,
    /// Passes, with a guess each.
    pub(crate) tried: usize,
    /// Guesses that saved a pass.
    pub(crate) right: usize,
}

/// A model and how it is measured.
pub(crate) struct Bench<'a> {
    slice: &'a dyn ModelSlice,
    chunk: usize,
    n_vocab: usize,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(slice: &'a dyn ModelSlice, chunk: usize) -> Self {
        let n_vocab = slice.info().config.n_vocab;
        Self {
            slice,
            chunk,
            n_vocab,
        }
    }

    pub(crate) fn empty(&self) -> CompleteKv {
        CompleteKv::empty(&self.slice.info().layout)
    }

    /// Prefills `tokens` tokens from nothing.
    pub(crate) fn prefill(&self, tokens: usize) -> Result<(CompleteKv, Vec<Chunk>)> {
        let mut kv = self.empty();
        let chunks = self.extend(&mut kv, tokens)?;
        Ok((kv, chunks))
    }

    /// Prefills `kv` up to `tokens` tokens and computes the logits of the last one.
    pub(crate) fn extend(&self, kv: &mut CompleteKv, tokens: usize) -> Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut depth = usize::try_from(kv.kv().frontier()).context("a frontier beyond this machine")?;
        while depth < tokens {
            let count = self.chunk.min(tokens - depth);
            let ids: Vec<u32> = (depth..depth + count).map(|at| self.token(0, at)).collect();
            let start = Instant::now();
            let mut hidden = self.slice.embed(&ids)?;
            self.slice.forward(&ids, &mut hidden, kv.kv_mut())?;
            if depth + count == tokens {
                std::hint::black_box(self.slice.logits(&hidden, count - 1)?);
            }
            chunks.push(Chunk {
                depth,
                tokens: count,
                took: start.elapsed(),
            });
            depth += count;
        }
        Ok(chunks)
    }

    /// Generates `steps` tokens in each of `batch` sessions that start as copies of `kv`; the time of each step of all sessions.
    pub(crate) fn decode(&self, kv: &CompleteKv, batch: usize, steps: usize) -> Result<Vec<Duration>> {
        let depth = usize::try_from(kv.kv().frontier()).context("a frontier beyond this machine")?;
        let mut sessions: Vec<CompleteKv> = vec![kv.clone(); batch];
        let last: Vec<usize> = (0..batch).collect();
        let mut step = |at: usize| {
            let start = Instant::now();
            let ids: Vec<u32> = (0..batch).map(|session| self.token(session, at)).collect();
            let mut hidden = self.slice.embed(&ids)?;
            let parts = ids.chunks(1).zip(&mut sessions);
            let mut parts: Vec<Part<'_>> = parts
                .map(|(tokens, kv)| Part {
                    tokens,
                    kv: kv.kv_mut(),
                })
                .collect();
            self.slice.forward_batch(&mut parts, &mut hidden)?;
            std::hint::black_box(self.slice.logits_batch(&hidden, &last)?);
            Ok(start.elapsed())
        };
        (depth..depth + steps).map(&mut step).collect()
    }

    /// Generates at least `steps` tokens after `kv` with the draft head's guesses, the most likely one each: what a head guesses right of is text
    /// of the model's own. None without a head.
    pub(crate) fn guess(&self, kv: &CompleteKv, steps: usize) -> Result<Option<Guessed>> {
        let Some(drafter) = self.slice.drafter() else {
            return Ok(None);
        };
        let (mut session, mut seen, mut guessed) = (kv.clone(), drafter.empty(), Guessed::default());
        let kv = session.kv_mut();
        let mut sampler = Sampler::new(&Sampling::GREEDY);
        let first = self.token(0, usize::try_from(kv.frontier())?);
        let mut before = self.slice.embed(&[first])?;
        self.slice.forward(&[first], &mut before, kv)?;
        let mut next = vec![sampler.sample(&self.slice.logits(&before, 0)?)];
        while guessed.tokens < steps {
            let start = Instant::now();
            let guess = drafter.draft(&mut seen, &next, &before)?;
            let token = next.last().copied().context("a token to go on from")?;
            let (hidden, logits) = self.slice.forward_guess(token, guess, kv)?;
            let (after_token, after_guess) = logits.split_at(self.n_vocab);
            next = vec![sampler.sample(after_token)];
            guessed.tried += 1;
            if next == [guess] {
                kv.keep_trial();
                next.push(sampler.sample(after_guess));
                guessed.right += 1;
            } else {
                kv.undo_trial()?;
            }
            let rows = hidden.as_slice()[..next.len() * hidden.width()].to_vec();
            before = Hidden::from_vec(hidden.width(), rows).context("streams of some width")?;
            guessed.tokens += next.len();
            guessed.took += start.elapsed();
        }
        Ok(Some(guessed))
    }

    /// The token at a position of a session: a hash of both (the finaliser of SplitMix64), so that sessions use different experts.
    fn token(&self, session: usize, at: usize) -> u32 {
        let mut x = ((session as u64) << 32 | at as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        #[allow(clippy::cast_possible_truncation)] // below the vocabulary
        let token = ((x ^ (x >> 31)) % self.n_vocab as u64) as u32;
        token
    }
}
