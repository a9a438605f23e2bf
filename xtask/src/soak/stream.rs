//! One client that asks and asks again, and what it compares its answers with.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::serving::MODEL;

/// Tokens of an answer.
const ANSWER: u64 = 48;
/// A client that leaves reads so many events first; every so many-th request is left.
const LEAVES: (usize, usize) = (5, 7);
/// Ids that are plain text in every vocabulary of the family: the first three are structure, the next are single bytes.
const IDS: u64 = 90;
const FIRST_ID: u64 = 20;

/// What is asked.
pub(super) struct Prompts(Vec<Vec<u64>>);

impl Prompts {
    /// Of 2 to 300 tokens.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        let mut state = seed;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let prompt = |_| {
            let length = 2 + random(299);
            (0..length).map(|_| FIRST_ID + random(IDS)).collect()
        };
        Self((0..count).map(prompt).collect())
    }

    fn body(&self, i: usize, user: &str) -> Value {
        // Half of the answers are drawn, by a seed of their own.
        let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
        json!({
            "model": MODEL, "prompt": self.0[i], "max_tokens": ANSWER, "ignore_eos": true, "temperature": temperature, "seed": i,
            "logprobs": 1, "user": user, "stream": true, "stream_options": {"include_usage": true},
        })
    }
}

/// An answer as far as it has come.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<Value>,
    /// Of every token, to the last bit.
    probabilities: Vec<Value>,
    finish: Option<String>,
}

impl Answer {
    fn add(&mut self, event: &Value) {
        let choice = &event["choices"][0];
        self.text.push_str(choice["text"].as_str().unwrap_or_default());
        let list = |name: &str| choice["logprobs"][name].as_array().cloned().unwrap_or_default();
        self.tokens.extend(list("tokens"));
        self.probabilities.extend(list("token_logprobs"));
        self.finish = choice["finish_reason"]
            .as_str()
            .map(str::to_owned)
            .or(self.finish.take());
    }

    fn begins(&self, whole: &Self) -> bool {
        whole.text.starts_with(&self.text)
            && whole.tokens.starts_with(&self.tokens)
            && whole.probabilities.starts_with(&self.probabilities)
    }
}

/// What one session alone answered.
pub(super) struct Reference {
    prompts: Prompts,
    answers: Vec<Answer>,
}

impl Reference {
    pub(super) fn of(url: &str, prompts: &Prompts) -> Result<Self> {
        let prompts = Prompts(prompts.0.clone());
        let agent = agent();
        let answers = (0..prompts.0.len()).map(|i| {
            let mut answer = Answer::default();
            let ended = follow(&agent, url, &prompts.body(i, "alone"), |event| {
                answer.add(event);
                true
            })?;
            ensure!(
                matches!(ended, Ended::Whole { .. }),
                "the reference {i}: {ended:?}"
            );
            ensure!(
                answer.tokens.len() as u64 == ANSWER,
                "the reference {i}: {answer:?}"
            );
            Ok(answer)
        });
        let answers = answers.collect::<Result<_>>()?;
        Ok(Self { prompts, answers })
    }
}

/// What one stream has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) tokens: u64,
    pub(super) whole: u64,
    pub(super) left: u64,
    pub(super) cached: u64,
    /// Answers by how their prompt was computed.
    pub(super) decisions: BTreeMap<String, u64>,
    /// Errors that the API announces: a status for too much or a failed route, with a time to try again where it has one.
    pub(super) announced: BTreeMap<String, u64>,
    /// What must not be.
    pub(super) wrong: Vec<String>,
}

impl Tally {
    pub(super) fn panicked() -> Self {
        Self {
            wrong: vec!["a client panicked".into()],
            ..Self::default()
        }
    }
}

#[derive(Debug)]
enum Ended {
    Whole {
        decision: String,
    },
    /// By the client.
    Left,
    Refused {
        status: u16,
        retry: bool,
        body: String,
    },
    /// An error in the stream.
    Failed(String),
    /// Without its end.
    Cut,
}

/// Asks until told to stop. Streams begin at different prompts.
pub(super) fn run(url: &str, number: usize, reference: &Reference, stop: &AtomicBool) -> Tally {
    let (agent, user, mut tally) = (agent(), format!("stream-{number}"), Tally::default());
    let count = reference.answers.len();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let i = (number * 37 + turn * 11) % count;
        let leaves = (number + turn).is_multiple_of(LEAVES.1);
        turn += 1;
        let (mut answer, mut events) = (Answer::default(), 0);
        let ended = follow(&agent, url, &reference.prompts.body(i, &user), |event| {
            answer.add(event);
            events += 1;
            tally.cached += event["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap_or(0);
            !(leaves && events >= LEAVES.0)
        });
        tally.tokens += answer.tokens.len() as u64;
        if !answer.begins(&reference.answers[i]) {
            tally.wrong.push(format!(
                "prompt {i}: expected {:?}, found {answer:?}",
                reference.answers[i]
            ));
        }
        match ended {
            Ok(ended) => note(&mut tally, ended, answer == reference.answers[i], i),
            Err(error) => tally.wrong.push(format!("prompt {i}: {error:#}")),
        }
    }
    tally
}

fn note(tally: &mut Tally, ended: Ended, equal: bool, i: usize) {
    match ended {
        Ended::Whole { decision } => {
            tally.whole += 1;
            *tally.decisions.entry(decision).or_default() += 1;
            if !equal {
                tally.wrong.push(format!("prompt {i}: the answer is not whole"));
            }
        }
        Ended::Left => tally.left += 1,
        Ended::Refused { status, retry, body } => {
            if matches!(status, 429 | 503) && retry {
                *tally.announced.entry(status.to_string()).or_default() += 1;
                std::thread::sleep(Duration::from_millis(200));
            } else {
                tally.wrong.push(format!("prompt {i}: {status}: {body}"));
            }
        }
        Ended::Failed(error) => tally.wrong.push(format!("prompt {i}: {error}")),
        Ended::Cut => tally
            .wrong
            .push(format!("prompt {i}: the stream ended without its end")),
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // Far beyond any deadline of the server: a request that hangs is an error.
        .timeout_global(Some(Duration::from_secs(90)));
    config.build().into()
}

/// One request; `each` sees every event and says whether to go on.
fn follow(
    agent: &ureq::Agent,
    url: &str,
    body: &Value,
    mut each: impl FnMut(&Value) -> bool,
) -> Result<Ended> {
    let response = agent.post(format!("{url}/v1/completions")).send_json(body)?;
    let status = response.status().as_u16();
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok().map(str::to_owned))
    };
    let (retry, mut decision) = (
        header("retry-after").is_some(),
        header("x-ds4-disaggregation").unwrap_or_default(),
    );
    let lines = BufReader::new(response.into_body().into_reader()).lines();
    if status != 200 {
        let body = lines.map_while(Result::ok).collect();
        return Ok(Ended::Refused { status, retry, body });
    }
    for line in lines {
        let line = line.context("reading the stream")?;
        if let Some(comment) = line.strip_prefix(": ") {
            if let Some(late) = comment.strip_prefix("x-ds4-disaggregation: ") {
                late.clone_into(&mut decision);
            }
            continue;
        }
        match line.strip_prefix("data: ") {
            None if line.is_empty() || line.starts_with(':') => {}
            None => bail!("expected an event, found {line:?}"),
            Some("[DONE]") => {
                let word = decision.split(';').next().unwrap_or_default();
                return Ok(Ended::Whole {
                    decision: word.to_owned(),
                });
            }
            Some(data) => {
                let event: Value = serde_json::from_str(data).context("an event")?;
                if !event["error"].is_null() {
                    return Ok(Ended::Failed(event["error"].to_string()));
                }
                if !each(&event) {
                    return Ok(Ended::Left);
                }
            }
        }
    }
    Ok(Ended::Cut)
}
