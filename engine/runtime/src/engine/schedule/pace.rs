//! How much of which prompt is computed beside the next tokens of the running answers.

use super::{Clock, Flow};

/// Most prompt tokens in a pass: a prompt of half this length that comes while another one is computed waits at most twice as long as it takes
/// itself. Fewer would read the experts' weights more often for the same tokens.
pub(crate) const PIECE: usize = 128;
/// So many pieces may go to other prompts of a flow before one that waits; then it goes first.
const PASSED: u32 = 4;
/// Passes after which a pass of answers alone is measured again: their sessions grow.
const STALE: u32 = 64;
/// What a new measurement counts.
const FRESH: f64 = 0.5;
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
    /// Tokens to the end of the prompt.
    pub(crate) left: usize,
    /// Pieces that others of the flow got since this one did.
    pub(crate) passed: u32,
}

/// So many tokens of that prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) prompt: usize,
    pub(crate) tokens: usize,
}

/// What passes have taken lately, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// How much longer than alone a token of an answer may take for the sake of prompts; 2 is twice as long.
    stretch: f64,
    clock: Clock,
    /// A pass of answers alone, by the power of two of their number.
    alone: Vec<Option<f64>>,
    since: u32,
    /// A prompt token beside answers, by kind.
    token: [Option<f64>; 2],
}

impl Pace {
    pub(crate) fn new(stretch: f64) -> Self {
        Self {
            stretch: stretch.max(1.0),
            clock: Clock::default(),
            alone: Vec::new(),
            since: 0,
            token: [None; 2],
        }
    }

    /// What joins a pass of `answers` answers. Between flows the clock decides; within one, the prompt that ends soonest.
    pub(crate) fn choose(&mut self, answers: usize, prompts: &mut [Waiting]) -> Vec<Piece> {
        let mut left = match self.allowed(answers) {
            None => return Vec::new(),
            Some(seconds) => Budget {
                seconds,
                tokens: PIECE,
            },
        };
        let mut chosen: Vec<Piece> = Vec::new();
        while left.tokens > 0 {
            let free = |at: &usize| prompts[*at].ready > 0 && chosen.iter().all(|piece| piece.prompt != *at);
            let Some(at) = (0..prompts.len())
                .filter(free)
                .min_by_key(|at| self.rank(&prompts[*at], *at))
            else {
                break;
            };
            let most = self.tokens(left, prompts[at].kind);
            // Something always goes on, however long the shortest piece takes.
            let tokens = prompts[at]
                .ready
                .min(if chosen.is_empty() { most.max(1) } else { most });
            if tokens == 0 {
                break;
            }
            left.spend(tokens, self.token[prompts[at].kind as usize]);
            let flow = prompts[at].flow;
            self.clock.charge(flow, tokens);
            prompts
                .iter_mut()
                .filter(|other| other.flow == flow)
                .for_each(|other| other.passed += 1);
            prompts[at].passed = 0;
            chosen.push(Piece { prompt: at, tokens });
        }
        chosen
    }

    fn rank(&self, prompt: &Waiting, at: usize) -> (u64, std::cmp::Reverse<u32>, usize, usize) {
        let overdue = if prompt.passed >= PASSED { prompt.passed } else { 0 };
        (
            self.clock.time(prompt.flow),
            std::cmp::Reverse(overdue),
            prompt.left,
            at,
        )
    }

    /// Seconds that prompts may add to a pass; none: the answers are to be measured alone first.
    fn allowed(&mut self, answers: usize) -> Option<f64> {
        if answers == 0 {
            return Some(f64::INFINITY);
        }
        self.since += 1;
        let alone = self.alone.get(bucket(answers)).copied().flatten()?;
        (self.since < STALE).then_some((self.stretch - 1.0) * alone)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most a piece
    fn tokens(&self, left: Budget, kind: Kind) -> usize {
        if left.seconds.is_infinite() {
            return left.tokens;
        }
        match self.token[kind as usize] {
            Some(cost) if cost > 0.0 => ((left.seconds / cost) as usize).min(left.tokens),
            _ => FIRST.min(left.tokens),
        }
    }

    /// A pass of `answers` answers and `tokens` prompt tokens has taken so long.
    pub(crate) fn passed(&mut self, answers: usize, tokens: usize, seconds: f64) {
        if answers == 0 {
            return;
        }
        let at = bucket(answers);
        if self.alone.len() <= at {
            self.alone.resize(at + 1, None);
        }
        if tokens == 0 {
            self.since = 0;
            return mix(&mut self.alone[at], seconds);
        }
        if let Some(alone) = self.alone[at] {
            self.measured(Kind::Whole, tokens, (seconds - alone).max(0.0));
        }
    }

    /// `tokens` prompt tokens took so long beside answers.
    pub(crate) fn measured(&mut self, kind: Kind, tokens: usize, seconds: f64) {
        mix(&mut self.token[kind as usize], seconds / tokens.max(1) as f64);
    }
}

#[derive(Clone, Copy)]
struct Budget {
    seconds: f64,
    tokens: usize,
}

impl Budget {
    fn spend(&mut self, tokens: usize, cost: Option<f64>) {
        self.tokens -= tokens;
        if self.seconds.is_finite() {
            // Of what is not known yet, one piece is enough.
            self.seconds -= cost.map_or(self.seconds, |cost| cost * tokens as f64);
        }
    }
}

const fn bucket(answers: usize) -> usize {
    answers.next_power_of_two().ilog2() as usize
}

fn mix(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |old| old + FRESH * (new - old)));
}
