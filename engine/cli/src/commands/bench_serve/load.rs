//! Requests, either so many at once or so many a second, and what each one took.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::args::BenchServeArguments;
use crate::client::{Line, Server};

/// What one request took.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Since the run began.
    pub(super) began: Duration,
    /// To the first token.
    pub(super) first: Duration,
    /// To the end.
    pub(super) total: Duration,
    /// Between the parts of the answer.
    pub(super) gaps: Vec<Duration>,
    pub(super) prompt: u64,
    pub(super) cached: u64,
    pub(super) completion: u64,
    pub(super) decision: String,
    pub(super) error: Option<String>,
}

/// Ids that are plain text in every vocabulary of the family: the first three are structure, the next are single bytes.
const IDS: std::ops::Range<u32> = 20..110;

/// A prompt that no other request shares, so that nothing comes from a cache unless asked for.
fn prompt(tokens: usize, shared: usize, seed: u64) -> Vec<u32> {
    let mut common = StdRng::seed_from_u64(0);
    let mut own = StdRng::seed_from_u64(seed.wrapping_add(1));
    let shared = (0..shared.min(tokens))
        .map(|_| common.random_range(IDS))
        .collect::<Vec<_>>();
    let rest = tokens - shared.len();
    shared
        .into_iter()
        .chain((0..rest).map(|_| own.random_range(IDS)))
        .collect()
}

fn request(model: &str, arguments: &BenchServeArguments, i: usize) -> Value {
    let seed = arguments.seed.wrapping_add(i as u64);
    json!({
        "model": model, "prompt": prompt(arguments.prompt_tokens, arguments.shared_tokens, seed), "max_tokens": arguments.output_tokens,
        "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    })
}

/// Sends all requests and waits for their ends. They are in the order in which they began.
pub(super) async fn run(
    server: &Server,
    model: &str,
    arguments: &BenchServeArguments,
) -> Result<Vec<Sample>> {
    ensure!(
        arguments.requests > 0 && arguments.concurrency > 0,
        "--requests and --concurrency: expected at least 1"
    );
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    let next = Arc::new(AtomicUsize::new(0));
    let starts = arguments
        .rate
        .map(|rate| starts(arguments.requests, rate, arguments.seed));
    // At a rate every request has its own task and waits for its time; otherwise each of the clients sends the next one when it has an answer.
    let clients = if starts.is_some() {
        arguments.requests
    } else {
        arguments.concurrency
    };
    for _ in 0..clients {
        let (server, model, arguments) = (server.clone(), model.to_owned(), arguments.clone());
        let (next, starts) = (Arc::clone(&next), starts.clone());
        tasks.spawn(async move {
            let mut samples = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= arguments.requests {
                    return samples;
                }
                if let Some(starts) = &starts {
                    tokio::time::sleep_until((began + starts[i]).into()).await;
                }
                samples.push(one(&server, &request(&model, &arguments, i), began).await);
            }
        });
    }
    let mut samples: Vec<Sample> = tasks.join_all().await.concat();
    samples.sort_by_key(|sample| sample.began);
    Ok(samples)
}

/// Random arrivals that are independent of one another: a Poisson process.
fn starts(count: usize, rate: f64, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    let mut next = || {
        at += -(1.0 - random.random::<f64>()).ln() / rate;
        Duration::from_secs_f64(at)
    };
    (0..count).map(|_| next()).collect()
}

async fn one(server: &Server, body: &Value, began: Instant) -> Sample {
    let mut sample = Sample {
        began: began.elapsed(),
        ..Sample::default()
    };
    let started = Instant::now();
    if let Err(error) = follow(server, body, started, &mut sample).await {
        sample.error = Some(format!("{error:#}"));
    }
    sample.total = started.elapsed();
    sample
}

async fn follow(server: &Server, body: &Value, started: Instant, sample: &mut Sample) -> Result<()> {
    let mut stream = server.stream("/v1/completions", body).await?;
    let mut last = None;
    let mut done = false;
    while let Some(line) = stream.next().await? {
        match line {
            Line::Comment(_) => {}
            Line::Done => done = true,
            Line::Data(event) => {
                let usage = &event["usage"];
                if usage.is_object() {
                    sample.prompt = usage["prompt_tokens"].as_u64().unwrap_or(0);
                    sample.cached = usage["prompt_tokens_details"]["cached_tokens"]
                        .as_u64()
                        .unwrap_or(0);
                    sample.completion = usage["completion_tokens"].as_u64().unwrap_or(0);
                }
                if event["choices"][0]["text"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
                {
                    let now = Instant::now();
                    match last.replace(now) {
                        None => sample.first = now - started,
                        Some(before) => sample.gaps.push(now - before),
                    }
                }
            }
        }
    }
    sample.decision.clone_from(&stream.decision);
    ensure!(done, "the stream ended without its end");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_as_long_as_asked_for_and_share_what_they_should() {
        let (one, two) = (prompt(50, 20, 1), prompt(50, 20, 2));
        assert_eq!((one.len(), &one[..20]), (50, &two[..20]));
        assert_ne!(one[20..], two[20..]);
        assert_eq!(prompt(5, 90, 1).len(), 5);
    }

    #[test]
    fn arrivals_have_the_rate_and_an_order() {
        let starts = starts(2000, 10.0, 3);
        assert!(starts.is_sorted());
        let seconds = starts[1999].as_secs_f64();
        assert!((180.0..220.0).contains(&seconds), "{seconds}");
    }
}
