//! How much of which prompt is computed beside the next tokens of the running answers.

use super::cost::{Costs, LEAST, Piece};
use super::{Clock, Flow};

/// Most prompt tokens in a pass, and how long a pass without answers takes at most: as long as so many tokens at the beginning of a prompt. A
/// prompt of half this length that comes while another one is computed waits at most twice as long as it takes itself, however deep the other
/// one is. Fewer would read the experts' weights more often for the same tokens.
pub(crate) const PIECE: usize = 128;
/// So many pieces may go to other prompts of a flow before one that waits; then it goes first.
const PASSED: u32 = 4;
/// Passes after which a pass of answers alone is measured again: their sessions grow.
const STALE: u32 = 64;
/// What a longer time of answers alone counts.
const SLOWLY: f64 = 0.125;
/// The first piece beside answers, while nothing is known of what it costs.
const FIRST: usize = 4;

/// Which layers a prompt's tokens go through here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// All: in one pass with the answers, for which the weights are read once.
    Whole,
    /// Those after the stages' layers: in a pass of its own.
    Own,
}

/// A prompt with tokens to compute.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) flow: Flow,
    pub(crate) kind: Kind,
    /// Tokens that can be computed now.
    pub(crate) ready: usize,
    /// Position of the first of them.
    pub(crate) position: usize,
    /// Tokens to the end of the prompt.
    pub(crate) left: usize,
    /// Pieces that others of the flow got since this one did.
    pub(crate) passed: u32,
}

/// So many tokens of that prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share {
    pub(crate) prompt: usize,
    pub(crate) tokens: usize,
}

/// What passes have taken lately, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// How many times as long as alone a token of an answer may take for the sake of prompts.
    stretch: f64,
    clock: Clock,
    /// A pass of answers alone, by the power of two of their number.
    alone: Vec<Option<f64>>,
    since: u32,
    /// Prompt tokens without answers, and what they add to a pass of answers, which reads the weights anyway.
    quiet: Costs,
    beside: Costs,
}

impl Pace {
    pub(crate) fn new(stretch: f64) -> Self {
        Self {
            stretch: stretch.max(1.0),
            clock: Clock::default(),
            alone: Vec::new(),
            since: 0,
            quiet: Costs::default(),
            beside: Costs::default(),
        }
    }

    /// What joins a pass of `answers` answers. Between flows the clock decides; within one, the prompt that ends soonest. Beside a prompt that
    /// ends in this pass nothing goes that does not end too: its first token waits for the pass.
    pub(crate) fn choose(&mut self, answers: usize, prompts: &mut [Waiting]) -> Vec<Share> {
        let Some(seconds) = self.allowed(answers) else {
            return Vec::new();
        };
        let mut left = Budget {
            seconds,
            tokens: PIECE,
        };
        let mut chosen: Vec<Share> = Vec::new();
        let mut ends = false;
        while let Some(at) = self.next(prompts, &chosen) {
            let cost = self.costs(answers).at(prompts[at].kind, prompts[at].position);
            let mut most = left.fits(cost, answers);
            if chosen.is_empty() {
                // Something always goes on, however long the shortest piece takes.
                most = most.max(if answers == 0 { LEAST } else { 1 });
            }
            let tokens = prompts[at].ready.min(most);
            let to_end = tokens == prompts[at].left;
            if tokens == 0 || ends && !to_end {
                break;
            }
            ends |= to_end;
            left.spend(tokens, cost);
            self.take(prompts, at, tokens);
            chosen.push(Share { prompt: at, tokens });
        }
        chosen
    }

    /// Who goes first of those that have no piece yet.
    fn next(&self, prompts: &[Waiting], chosen: &[Share]) -> Option<usize> {
        let free = |at: &usize| prompts[*at].ready > 0 && chosen.iter().all(|piece| piece.prompt != *at);
        let waiting = (0..prompts.len()).filter(free);
        waiting.min_by_key(|at| self.rank(&prompts[*at], *at))
    }

    fn rank(&self, prompt: &Waiting, at: usize) -> (u64, std::cmp::Reverse<u32>, usize, usize) {
        let overdue = if prompt.passed >= PASSED { prompt.passed } else { 0 };
        let time = self.clock.time(prompt.flow);
        (time, std::cmp::Reverse(overdue), prompt.left, at)
    }

    fn take(&mut self, prompts: &mut [Waiting], at: usize, tokens: usize) {
        let flow = prompts[at].flow;
        self.clock.charge(flow, tokens);
        let of_flow = prompts.iter_mut().filter(|other| other.flow == flow);
        of_flow.for_each(|other| other.passed += 1);
        prompts[at].passed = 0;
    }

    /// Seconds that prompts may take; none: the answers are to be measured alone first.
    fn allowed(&mut self, answers: usize) -> Option<f64> {
        if answers == 0 {
            let beginning = self.quiet.of_beginning();
            return Some(beginning.map_or(f64::INFINITY, |cost| cost * PIECE as f64));
        }
        self.since += 1;
        let alone = self.alone.get(bucket(answers)).copied().flatten()?;
        (self.since < STALE).then_some((self.stretch - 1.0) * alone)
    }

    const fn costs(&self, answers: usize) -> &Costs {
        if answers == 0 { &self.quiet } else { &self.beside }
    }

    /// A pass through all layers of `answers` answers and these pieces has taken so long.
    pub(crate) fn passed(&mut self, answers: usize, pieces: &[Piece], seconds: f64) {
        if answers == 0 {
            return self.quiet.learn_alone(pieces, seconds);
        }
        let at = bucket(answers);
        if self.alone.len() <= at {
            self.alone.resize(at + 1, None);
        }
        if pieces.is_empty() {
            self.since = 0;
            return undisturbed(&mut self.alone[at], seconds);
        }
        if let Some(alone) = self.alone[at] {
            self.beside.learn(pieces, (seconds - alone).max(0.0));
        }
    }

    /// A piece that was computed after a pass of `answers` answers has taken so long.
    pub(crate) fn measured(&mut self, answers: usize, piece: Piece, seconds: f64) {
        if answers == 0 {
            self.quiet.learn_alone(&[piece], seconds);
        } else {
            self.beside.learn(&[piece], seconds);
        }
    }
}

#[derive(Clone, Copy)]
struct Budget {
    seconds: f64,
    tokens: usize,
}

impl Budget {
    /// Tokens of this cost that fit in.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most a piece
    fn fits(self, cost: Option<f64>, answers: usize) -> usize {
        let tokens = match cost {
            // Rounding must not cost the last token.
            Some(cost) if cost > 0.0 => (self.seconds / cost + 1e-6).min(PIECE as f64) as usize,
            None if answers > 0 => FIRST,
            _ => PIECE,
        };
        tokens.min(self.tokens)
    }

    fn spend(&mut self, tokens: usize, cost: Option<f64>) {
        self.tokens -= tokens;
        if self.seconds.is_finite() {
            // Of what is not known yet, one piece is enough.
            self.seconds -= cost.map_or(self.seconds, |cost| cost * tokens as f64);
        }
    }
}

/// What disturbs a pass makes it longer, never shorter; taken for its own time, that would let prompts take as long in each of the next [`STALE`].
fn undisturbed(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |old| new.min(old + SLOWLY * (new - old))));
}

const fn bucket(answers: usize) -> usize {
    answers.next_power_of_two().ilog2() as usize
}
