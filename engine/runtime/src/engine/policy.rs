//! Where the next tokens are computed: here or over the route, whichever was faster lately. Pure: measurements come in, a choice goes out.

use std::fmt;

/// What one turn needs of either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Tokens that are computed here, or handed over.
    pub tokens: u64,
    /// Tokens that the stages compute: these, and those that were decoded here since their last turn.
    pub replay: u64,
}

/// One of the two ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// This process computes all layers.
    Local,
    /// The stages compute theirs, and hand their KV over.
    Route,
}

/// A choice, with what it rests on.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// Which way.
    pub way: Way,
    /// Seconds that the local way would take, where anything is known of it.
    pub local: Option<f64>,
    /// Seconds that the route would take.
    pub route: Option<f64>,
    /// Why.
    pub reason: Reason,
}

impl Choice {
    /// Seconds that the way chosen would take.
    #[must_use]
    pub const fn predicted(&self) -> Option<f64> {
        match self.way {
            Way::Local => self.local,
            Way::Route => self.route,
        }
    }
}

/// Why a way was chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Reason {
    /// Shorter than what goes over the route at all.
    Short {
        /// Tokens of this turn.
        tokens: u64,
        /// The least.
        least: u64,
    },
    /// One way has not been measured yet.
    Unknown(Way),
    /// The other way has not been measured for a long time.
    Stale(Way),
    /// By prediction.
    Faster,
    /// The other way is faster by prediction, but not by enough to change.
    Steady,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known =
            |seconds: Option<f64>| seconds.map_or("unknown".into(), |seconds| format!("{seconds:.3} s"));
        match self.reason {
            Reason::Short { tokens, least } => write!(f, "{tokens} prompt tokens are fewer than {least}"),
            Reason::Unknown(way) => write!(f, "the {way} has not been measured yet"),
            Reason::Stale(way) => write!(f, "the {way} has not been measured lately"),
            Reason::Faster | Reason::Steady => {
                write!(
                    f,
                    "predicted {} here, {} over the route",
                    known(self.local),
                    known(self.route)
                )?;
                if self.reason == Reason::Steady {
                    f.write_str(", too close to change")
                } else {
                    Ok(())
                }
            }
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local way",
            Self::Route => "route",
        })
    }
}

/// How far back measurements count: each one is worth this part of the next.
const MEMORY: f64 = 0.9;
/// How much faster the other way must be before it is taken: two equal ways must not alternate by noise.
const MARGIN: f64 = 0.1;
/// Choices after which the other way is measured again, unless it is predicted to take more than twice as long.
const STALE: u32 = 64;

/// A mean of so many tokens says nothing of this many times more.
const REACH: f64 = 16.0;

/// Seconds as a line over tokens: a fixed part and a rate, from measurements that fade.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    product: f64,
}

impl Line {
    fn add(&mut self, tokens: f64, seconds: f64) {
        self.weight = self.weight * MEMORY + 1.0;
        self.tokens = self.tokens * MEMORY + tokens;
        self.seconds = self.seconds * MEMORY + seconds;
        self.tokens_squared = self.tokens_squared * MEMORY + tokens * tokens;
        self.product = self.product * MEMORY + tokens * seconds;
    }

    /// By least squares; `None` for many more tokens than were measured. Where the measurements do not tell the fixed part from the rate, everything is rate.
    fn at(&self, tokens: f64) -> Option<f64> {
        if self.tokens == 0.0 || tokens > REACH * self.tokens / self.weight {
            return None;
        }
        let spread = self.weight * self.tokens_squared - self.tokens * self.tokens;
        let slope = (self.weight * self.product - self.tokens * self.seconds) / spread;
        let fixed = (self.seconds - slope * self.tokens) / self.weight;
        let told_apart = spread > 0.01 * self.tokens * self.tokens && slope > 0.0 && fixed >= 0.0;
        Some(if told_apart {
            fixed + slope * tokens
        } else {
            self.seconds / self.tokens * tokens
        })
    }
}

/// What was measured, and what was chosen.
#[derive(Clone, Debug)]
pub struct Adaptive {
    least: u64,
    local: Line,
    route: Line,
    last: Option<Way>,
    /// Choices since either way was measured.
    since_local: u32,
    since_route: u32,
}

impl Adaptive {
    /// Fewer than `least` tokens never go over the route.
    #[must_use]
    pub fn new(least: u64) -> Self {
        Self {
            least,
            local: Line::default(),
            route: Line::default(),
            last: None,
            since_local: 0,
            since_route: 0,
        }
    }

    /// The way for a turn.
    #[allow(clippy::cast_precision_loss)] // token counts
    pub fn choose(&mut self, demand: Demand) -> Choice {
        let Demand { tokens, replay } = demand;
        let (local, route) = (self.local.at(tokens as f64), self.route.at(replay as f64));
        let choice = |way, reason| Choice {
            way,
            local,
            route,
            reason,
        };
        if tokens < self.least {
            return choice(
                Way::Local,
                Reason::Short {
                    tokens,
                    least: self.least,
                },
            );
        }
        let choice = match (local, route) {
            (_, None) => choice(Way::Route, Reason::Unknown(Way::Route)),
            // Short turns tell in time how fast it is here; until then nothing is risked.
            (None, _) => choice(Way::Route, Reason::Unknown(Way::Local)),
            (Some(here), Some(there)) => {
                let (way, reason) = self.compare(here, there);
                choice(way, reason)
            }
        };
        self.last = Some(choice.way);
        (self.since_local, self.since_route) = (self.since_local + 1, self.since_route + 1);
        choice
    }

    fn compare(&self, here: f64, there: f64) -> (Way, Reason) {
        let faster = if here <= there { Way::Local } else { Way::Route };
        if faster == Way::Local && self.since_route >= STALE && there < 2.0 * here {
            return (Way::Route, Reason::Stale(Way::Route));
        }
        if faster == Way::Route && self.since_local >= STALE && here < 2.0 * there {
            return (Way::Local, Reason::Stale(Way::Local));
        }
        let (better, worse) = if here <= there {
            (here, there)
        } else {
            (there, here)
        };
        match self.last {
            Some(last) if last != faster && better > worse * (1.0 - MARGIN) => (last, Reason::Steady),
            _ => (faster, Reason::Faster),
        }
    }

    /// What a turn really took.
    #[allow(clippy::cast_precision_loss)] // token counts
    pub fn measured(&mut self, way: Way, demand: Demand, seconds: f64) {
        match way {
            Way::Local => {
                self.local.add(demand.tokens as f64, seconds);
                self.since_local = 0;
            }
            Way::Route => {
                self.route.add(demand.replay as f64, seconds);
                self.since_route = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 tokens per second here; 300 over the route, after half a second.
    fn took(way: Way, tokens: u64) -> f64 {
        match way {
            Way::Local => tokens as f64 / 100.0,
            Way::Route => 0.5 + tokens as f64 / 300.0,
        }
    }

    fn turn(policy: &mut Adaptive, tokens: u64) -> Choice {
        let demand = Demand {
            tokens,
            replay: tokens,
        };
        let choice = policy.choose(demand);
        policy.measured(choice.way, demand, took(choice.way, tokens));
        choice
    }

    fn warm() -> Adaptive {
        let mut policy = Adaptive::new(10);
        for way in [Way::Local, Way::Route] {
            for tokens in [20, 200, 1000] {
                policy.measured(
                    way,
                    Demand {
                        tokens,
                        replay: tokens,
                    },
                    took(way, tokens),
                );
            }
        }
        policy
    }

    #[test]
    fn both_ways_are_measured_before_they_are_compared() {
        let mut policy = Adaptive::new(80);
        assert_eq!(turn(&mut policy, 800).reason, Reason::Unknown(Way::Route));
        let second = turn(&mut policy, 800);
        assert_eq!(
            (second.way, second.reason),
            (Way::Route, Reason::Unknown(Way::Local))
        );
        let short = turn(&mut policy, 79);
        assert_eq!(
            (short.way, short.reason),
            (
                Way::Local,
                Reason::Short {
                    tokens: 79,
                    least: 80
                }
            )
        );
        assert_eq!(
            turn(&mut policy, 800).reason,
            Reason::Faster,
            "short turns told how fast it is here"
        );
        assert_eq!(
            policy
                .choose(Demand {
                    tokens: 2000,
                    replay: 2000
                })
                .reason,
            Reason::Unknown(Way::Local),
            "out of reach"
        );
    }

    #[test]
    fn long_turns_go_over_the_route_and_short_ones_do_not() {
        let mut policy = warm();
        assert_eq!(
            policy
                .choose(Demand {
                    tokens: 30,
                    replay: 30
                })
                .way,
            Way::Local
        );
        let choice = policy.choose(Demand {
            tokens: 900,
            replay: 900,
        });
        assert_eq!(choice.way, Way::Route);
        let (local, route) = (choice.local.expect("known"), choice.route.expect("known"));
        assert!(
            (local - 9.0).abs() < 0.1 && (route - 3.5).abs() < 0.1,
            "{local} {route}"
        );
        assert_eq!(
            choice.to_string(),
            "predicted 9.000 s here, 3.500 s over the route"
        );
        // Few new tokens, but the stages are far behind.
        assert_eq!(
            policy
                .choose(Demand {
                    tokens: 100,
                    replay: 3000
                })
                .way,
            Way::Local
        );
    }

    #[test]
    fn two_ways_that_are_nearly_equal_do_not_alternate() {
        // Equal at 75 tokens: noise there must not change the way each time.
        let mut policy = warm();
        let mut changes = 0;
        let mut last = None;
        for i in 0..50 {
            let way = policy
                .choose(Demand {
                    tokens: 73 + i % 5,
                    replay: 73 + i % 5,
                })
                .way;
            changes += u32::from(last.is_some_and(|last| last != way));
            last = Some(way);
        }
        assert_eq!(changes, 0);
    }

    #[test]
    fn a_route_that_became_slow_is_left_and_tried_again_later() {
        let mut policy = warm();
        for _ in 0..20 {
            let demand = Demand {
                tokens: 300,
                replay: 300,
            };
            let choice = policy.choose(demand);
            let seconds = if choice.way == Way::Route { 4.5 } else { 3.0 };
            policy.measured(choice.way, demand, seconds);
        }
        let demand = Demand {
            tokens: 300,
            replay: 300,
        };
        assert_eq!(policy.choose(demand).way, Way::Local);
        let again = (0..2 * STALE).map(|_| {
            let choice = policy.choose(demand);
            policy.measured(
                choice.way,
                demand,
                if choice.way == Way::Route { 4.5 } else { 3.0 },
            );
            choice
        });
        assert!(
            again
                .filter(|choice| choice.reason == Reason::Stale(Way::Route))
                .count()
                >= 1
        );
    }
}
