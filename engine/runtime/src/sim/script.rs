//! What happens in one simulation, as its seed decides it.

use std::time::Duration;

use super::network::{Fault, Kind};
use super::random::Random;
use crate::{EngineOptions, OnFailure, Policy};

/// Longest silence of the route.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);
/// Most bytes before a fault on the way to a node: a few prompts.
const TOWARD: u64 = 12_000;
/// And from it: activations and rows.
const FROM: u64 = 150_000;

/// What happens to a node, or by one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// It dies, and another comes in its place, or none.
    Kill { stage: usize, back: Option<Duration> },
    /// As SIGSTOP and SIGCONT do.
    Freeze { stage: usize, lasts: Duration },
    /// As SIGTERM does; another comes in its place.
    Drain { stage: usize, back: Duration },
    /// Somebody calls with epochs that are not those of any attempt now.
    Zombie,
}

/// How a prompt follows from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// The answer, and more.
    Continue,
    /// Another answer, and more.
    Regenerate,
    /// The same.
    Again,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) change: Change,
    /// Tokens that come to it.
    pub(crate) more: usize,
    /// Before it.
    pub(crate) pause: Duration,
    /// The client leaves so long after asking.
    pub(crate) leaves: Option<Duration>,
}

/// A conversation: its first prompt, and what follows.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub(crate) opening: u32,
    pub(crate) length: usize,
    pub(crate) turns: Vec<Turn>,
}

/// One simulation.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Layers of each place, the output pod's own last; and whether the place has a spare.
    pub(crate) places: Vec<(usize, usize, bool)>,
    pub(crate) own: usize,
    pub(crate) options: EngineOptions,
    pub(crate) faults: Vec<Fault>,
    pub(crate) events: Vec<(Duration, What)>,
    pub(crate) talks: Vec<Talk>,
}

impl Script {
    /// Anything may happen.
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut script = Self::quiet(random);
        let stages = script.stages() as u64;
        for _ in 0..random.below(3) {
            script.faults.push(fault(random, stages));
        }
        for _ in 0..random.below(3) {
            let at = random.millis(400);
            script.events.push((at, event(random, script.stages())));
        }
        for turn in script.talks.iter_mut().flat_map(|talk| &mut talk.turns) {
            turn.leaves = random.one_in(8).then(|| random.millis(150));
        }
        script
    }

    /// Anything but flipped bits; and no choice that rests on a stopwatch.
    pub(crate) fn without_flips(random: &mut Random) -> Self {
        let mut script = Self::new(random);
        script.faults.retain(|fault| fault.kind != Kind::Flip);
        script.options.policy = Policy::Always;
        script
    }

    /// Only the bits of what goes to the stages change.
    pub(crate) fn flips(random: &mut Random) -> Self {
        let mut script = Self::quiet(random);
        let stages = script.stages() as u64;
        let flip = |random: &mut Random| Fault {
            kind: Kind::Flip,
            node: random.below(stages),
            toward: true,
            after: random.below(TOWARD / 4),
        };
        script.faults = (0..4).map(|_| flip(random)).collect();
        script
    }

    /// Nothing goes wrong.
    pub(crate) fn quiet(random: &mut Random) -> Self {
        let spare = |random: &mut Random| random.one_in(3);
        let places: &[(usize, usize)] = random.pick(&[
            [(0, 2)].as_slice(),
            &[(0, 0), (1, 2)],
            &[(0, 1), (2, 2)],
            &[(0, 0), (1, 1), (2, 2)],
        ]);
        let places = places.iter().map(|(first, last)| (*first, *last, spare(random)));
        Self {
            places: places.collect(),
            own: 3,
            options: options(random),
            faults: Vec::new(),
            events: Vec::new(),
            talks: (0..=random.below(2)).map(|_| talk(random)).collect(),
        }
    }

    /// Stages and spares.
    pub(crate) fn stages(&self) -> usize {
        self.places
            .iter()
            .map(|(_, _, spare)| 1 + usize::from(*spare))
            .sum()
    }

    /// Whether nothing was to go wrong.
    pub(crate) const fn clean(&self) -> bool {
        self.faults.is_empty() && self.events.is_empty()
    }
}

fn options(random: &mut Random) -> EngineOptions {
    EngineOptions {
        prefill_chunk: random.pick(&[4, 8, 16]),
        window: random.pick(&[1, 2, 4]),
        streams: random.pick(&[1, 2, 3]),
        frame_bytes: random.pick(&[64, 400, 1 << 20]),
        min_prompt_tokens: 1,
        handoff_timeout: SILENCE,
        on_failure: if random.one_in(5) {
            OnFailure::Fail
        } else {
            OnFailure::RecomputeLocally
        },
        policy: if random.one_in(6) {
            Policy::Adaptive
        } else {
            Policy::Always
        },
        kept_budget: random.pick(&[0, 1 << 20, 1 << 30]),
        stage_hold: Duration::from_secs(3),
        ..EngineOptions::default()
    }
}

/// Few different prompts, so that their answers are computed once for all seeds.
fn talk(random: &mut Random) -> Talk {
    let turns = 1 + random.below(3);
    Talk {
        opening: u32::try_from(random.below(4)).unwrap_or(0),
        length: random.pick(&[3, 13, 26]),
        turns: (0..turns).map(|_| turn(random)).collect(),
    }
}

fn turn(random: &mut Random) -> Turn {
    Turn {
        change: random.pick(&[
            Change::Continue,
            Change::Continue,
            Change::Regenerate,
            Change::Again,
        ]),
        more: random.pick(&[1, 9]),
        pause: random.pick(&[Duration::ZERO, Duration::from_millis(40), Duration::from_secs(7)]),
        leaves: None,
    }
}

fn fault(random: &mut Random, stages: u64) -> Fault {
    let toward = random.one_in(2);
    Fault {
        kind: random.pick(&Kind::ALL),
        node: random.below(stages),
        toward,
        after: random.below(if toward { TOWARD } else { FROM }),
    }
}

fn event(random: &mut Random, stages: usize) -> What {
    let stage = usize::try_from(random.below(stages as u64)).unwrap_or(0);
    match random.below(5) {
        0 => What::Kill { stage, back: None },
        1 => What::Kill {
            stage,
            back: Some(random.millis(300)),
        },
        2 => What::Freeze {
            stage,
            lasts: random.millis(4000),
        },
        3 => What::Drain {
            stage,
            back: random.millis(3000),
        },
        _ => What::Zombie,
    }
}
