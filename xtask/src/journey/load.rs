//! A constant load of requests, and what became of each.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Clients that ask at once.
const CLIENTS: usize = 3;
/// A client rests this long between two requests.
const PAUSE: Duration = Duration::from_millis(100);
/// So many requests of a load go over the stages at least, whatever happens to it.
const LEAST: usize = 5;
/// No request may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// `disaggregated`, `local` or `recomputed`.
    pub(super) decision: String,
    /// Why, where it is not the first.
    pub(super) reason: Option<String>,
}

/// One request's fate.
#[derive(Debug)]
struct Outcome {
    /// Since the load began.
    at: Duration,
    took: Duration,
    answer: Result<Answer>,
}

/// Clients at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Outcome>>>,
}

impl Load {
    /// Lets clients ask `address` until [`Load::end`], half of them for a stream.
    pub(super) fn start(address: &str, model: &str) -> Self {
        let (stop, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let clients = (0..CLIENTS)
            .map(|client| {
                let (stop, address, model) = (Arc::clone(&stop), address.to_owned(), model.to_owned());
                std::thread::spawn(move || {
                    let mut outcomes = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        let streamed = (client + outcomes.len()).is_multiple_of(2);
                        let answer = ask(&address, &model, streamed);
                        outcomes.push(Outcome {
                            at: began.elapsed(),
                            took: start.elapsed(),
                            answer,
                        });
                        std::thread::sleep(PAUSE);
                    }
                    outcomes
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// Lets every client finish its last request; says what became of all.
    pub(super) fn end(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for client in self.clients {
            let outcomes = client.join().ok().context("a client of the load panicked")?;
            outcomes.into_iter().for_each(|outcome| report.count(outcome));
        }
        Ok(report)
    }
}

/// What became of a load's requests.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) answered: usize,
    pub(super) failures: Vec<String>,
    /// Every text that was answered.
    pub(super) texts: BTreeSet<String>,
    pub(super) decisions: BTreeMap<String, usize>,
    /// Why prompts were not disaggregated.
    pub(super) reasons: BTreeSet<String>,
    pub(super) slowest: Duration,
}

impl Report {
    fn count(&mut self, outcome: Outcome) {
        self.slowest = self.slowest.max(outcome.took);
        match outcome.answer {
            Ok(answer) => {
                self.answered += 1;
                self.texts.insert(answer.text);
                *self.decisions.entry(answer.decision).or_default() += 1;
                self.reasons.extend(answer.reason);
            }
            Err(error) => self
                .failures
                .push(format!("{:.1} s: {error:#}", outcome.at.as_secs_f64())),
        }
    }

    /// Fails when an answer is none of these, or when more than `most` requests failed.
    pub(super) fn check(&self, right: &[String], most: usize) -> Result<()> {
        let wrong: Vec<&String> = self.texts.iter().filter(|text| !right.contains(text)).collect();
        ensure!(
            wrong.is_empty(),
            "wrong answers: {wrong:?}, expected one of {right:?}"
        );
        ensure!(
            self.failures.len() <= most,
            "{} of {} requests failed, at most {most} may: {}",
            self.failures.len(),
            self.answered + self.failures.len(),
            self.failures.join("; ")
        );
        // A load that the output pods answer alone would say nothing about the stages.
        let over_stages = self.decided("disaggregated");
        ensure!(
            over_stages >= LEAST,
            "{over_stages} of {} requests went over the stages, expected at least {LEAST}",
            self.answered
        );
        Ok(())
    }

    /// Why prompts were not disaggregated, a line for each reason.
    pub(super) fn why(&self) -> String {
        let reasons: Vec<&str> = self.reasons.iter().map(String::as_str).collect();
        reasons.join("\n      ")
    }

    fn decided(&self, decision: &str) -> usize {
        self.decisions.get(decision).copied().unwrap_or(0)
    }

    /// For the table.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} answered ({} disaggregated, {} recomputed, {} local), {} failed, slowest {:.1} s",
            self.answered,
            self.decided("disaggregated"),
            self.decided("recomputed"),
            self.decided("local"),
            self.failures.len(),
            self.slowest.as_secs_f64()
        )
    }
}

/// One question, long enough to be disaggregated, with an answer that depends on the model alone.
pub(super) fn ask(address: &str, model: &str, streamed: bool) -> Result<Answer> {
    let question =
        "How can the layers of one model live on several machines while only one of them answers? ".repeat(2);
    let request = json!({
        "model": model, "stream": streamed, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    });
    let mut answer = agent()
        .post(format!("{address}/v1/chat/completions"))
        .send_json(&request)?;
    let (status, decision) = (answer.status(), header(&answer, "x-ds4-disaggregation"));
    let mut body = String::new();
    answer.body_mut().as_reader().read_to_string(&mut body)?;
    ensure!(status == 200, "status {status}: {body}");
    Ok(Answer {
        text: if streamed { stream(&body)? } else { whole(&body)? },
        decision: decision.split(';').next().unwrap_or_default().to_owned(),
        reason: (!decision.starts_with("disaggregated")).then_some(decision),
    })
}

/// The whole of one disaggregated answer, log-probabilities included: equal for equal bits only.
pub(super) fn exact(address: &str, model: &str) -> Result<String> {
    let question = "Which bits does a stage send, and who is to say that they are the right ones? ".repeat(2);
    let request = json!({
        "model": model, "max_tokens": 16, "temperature": 0, "logprobs": true, "top_logprobs": 5,
        "messages": [{"role": "user", "content": question}],
    });
    let mut answer = agent()
        .post(format!("{address}/v1/chat/completions"))
        .send_json(&request)?;
    let decision = header(&answer, "x-ds4-disaggregation");
    let mut body = String::new();
    answer.body_mut().as_reader().read_to_string(&mut body)?;
    ensure!(
        decision.starts_with("disaggregated"),
        "expected disaggregated, found {decision:?}: {body}"
    );
    let answer: Value = serde_json::from_str(&body)?;
    ensure!(
        answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "no log-probabilities: {body}"
    );
    Ok(answer["choices"].to_string())
}

/// A connection for each request, as from many clients.
fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_idle_connections(0)
        .build();
    config.into()
}

fn header(answer: &ureq::http::Response<ureq::Body>, name: &str) -> String {
    let value = answer.headers().get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn whole(body: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    Ok(text.with_context(|| format!("no content: {body}"))?.to_owned())
}

/// The text of a stream that came to its end.
fn stream(body: &str) -> Result<String> {
    let mut text = String::new();
    for data in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            return Ok(text);
        }
        let part: Value = serde_json::from_str(data).with_context(|| data.to_owned())?;
        if let Some(error) = part.get("error") {
            bail!("an error in the stream: {error}");
        }
        text += part["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
    }
    bail!("a dropped stream, after {} bytes", body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_stream_a_wrong_answer_and_a_failure_are_told() {
        let part = r#"data: {"choices":[{"delta":{"content":"hi"}}]}"#;
        assert_eq!(
            stream(&format!("{part}\n\ndata: [DONE]\n")).ok().as_deref(),
            Some("hi")
        );
        assert!(stream(part).is_err());
        let outcome = |answer| Outcome {
            at: Duration::ZERO,
            took: Duration::ZERO,
            answer,
        };
        let answer = |decision: &str| Answer {
            text: "a".into(),
            decision: decision.into(),
            reason: None,
        };
        let mut report = Report::default();
        report.count(outcome(Ok(answer("local"))));
        assert!(report.check(&["a".into()], 0).is_err(), "no stage was asked");
        (0..LEAST).for_each(|_| report.count(outcome(Ok(answer("disaggregated")))));
        assert!(report.check(&["a".into()], 0).is_ok());
        assert!(report.check(&["b".into()], 0).is_err());
        report.count(outcome(Err(anyhow::anyhow!("refused"))));
        assert!(report.check(&["a".into()], 0).is_err());
        assert!(report.check(&["a".into()], 1).is_ok());
    }
}
