//! What a long prompt costs those beside it: the first token of a short prompt, and the next tokens of running answers.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::machine::{self, Cpus};
use crate::progress::step;
use crate::repository;
use crate::serving::{MODEL, Nodes, Server};

/// What `cargo xtask bench serving` is given.
#[derive(Clone, Debug, Args)]
pub struct Serving {
    /// Tokens of the long prompt.
    #[arg(long, default_value_t = 30_000, value_name = "N")]
    long: usize,
    /// Tokens of the short one.
    #[arg(long, default_value_t = 64, value_name = "N")]
    short: usize,
    /// Answers that run.
    #[arg(long, default_value_t = 4, value_name = "N")]
    streams: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// One way that the long prompt can go.
struct Measured {
    way: &'static str,
    /// Times to the first token of the short prompt, in milliseconds.
    first: [Times; 2],
    /// Times between the tokens of the running answers.
    next: [Times; 2],
    /// Seconds of the long prompt alone, beside short prompts and beside running answers.
    long: [f64; 3],
}

#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an index into the list
    fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

impl Serving {
    /// Measures idle and beside the long prompt, on the same server, one after the other.
    ///
    /// # Errors
    /// When a server does not come up or a request fails.
    pub fn run(&self) -> Result<()> {
        let folder = repository::cache().join("bench/serving");
        let context = (self.long + 4096).to_string();
        let flags = [
            "--max-context",
            &context,
            "--sessions",
            "16",
            "--kept-budget",
            "1",
        ];
        let nodes = nodes();
        if let Some(nodes) = &nodes {
            // The clients have no node of their own; those of the stages wait for nobody's first token.
            nodes.stages.pin()?;
        }
        let here = {
            let server = Server::alone(&folder, nodes.clone(), &flags)?;
            step("the long prompt is computed here", || {
                self.measure(&server, "local")
            })?
        };
        let server = Server::over_stages(&folder, nodes.clone(), &flags)?;
        let over = step("the long prompt goes over two stages", || {
            self.measure(&server, "disaggregated")
        })?;
        self.print(&[here, over], nodes.as_ref())
    }

    fn measure(&self, server: &Server, way: &'static str) -> Result<Measured> {
        let url = &server.url;
        // The first requests warm pages and the pace of the scheduler.
        self.first(url, 3, None)?;
        let idle = self.first(url, 15, None)?;
        let undisturbed = Long::start(url, self.long, 0).end()?;
        let long = Long::start(url, self.long, 1);
        let beside = self.first(url, 30, Some(&long))?;
        let beside_first = long.end()?;
        ensure!(
            !beside.is_empty(),
            "the long prompt ended before a short one was answered"
        );
        let alone = self.next(url, None)?;
        let long = Long::start(url, self.long, 2);
        let with = self.next(url, Some(&long))?;
        let beside_next = long.end()?;
        Ok(Measured {
            way,
            first: [Times::of(idle), Times::of(beside)],
            next: [Times::of(alone), Times::of(with)],
            long: [undisturbed, beside_first, beside_next].map(|time| time.as_secs_f64()),
        })
    }

    /// Short prompts, one after the other; beside a long one only as long as it lasts.
    fn first(&self, url: &str, count: usize, long: Option<&Long>) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for i in 0..count {
            if long.is_some_and(Long::has_ended) {
                break;
            }
            let seed = 1000 + i + if long.is_some() { 500 } else { count };
            let mut first = None;
            let started = Instant::now();
            follow(url, &prompt(self.short, seed), 4, |now| {
                first.get_or_insert(now - started);
                true
            })?;
            times.extend(
                first
                    .filter(|_| !long.is_some_and(Long::has_ended))
                    .map(milliseconds),
            );
        }
        Ok(times)
    }

    /// Gaps of answers that run at once: for two seconds, or while the long prompt is computed.
    fn next(&self, url: &str, long: Option<&Long>) -> Result<Vec<f64>> {
        let stop = Arc::new(AtomicBool::new(false));
        let runs: Vec<_> = (0..self.streams)
            .map(|i| {
                let (url, stop) = (url.to_owned(), Arc::clone(&stop));
                let prompt = prompt(32, 7000 + i + if long.is_some() { 100 } else { 0 });
                std::thread::spawn(move || -> Result<Vec<f64>> {
                    let (mut gaps, mut last) = (Vec::new(), None);
                    follow(&url, &prompt, 3000, |now: Instant| {
                        gaps.extend(last.replace(now).map(|before| milliseconds(now - before)));
                        !stop.load(Ordering::Relaxed)
                    })?;
                    Ok(gaps)
                })
            })
            .collect();
        let began = Instant::now();
        let over = |long: &Long| long.has_ended() || began.elapsed() > Duration::from_secs(20);
        while !long.map_or(began.elapsed() > Duration::from_secs(3), over) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for run in runs {
            let gaps = run.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            // The first ones are of prompts of the others.
            all.extend(gaps.into_iter().skip(10));
        }
        Ok(all)
    }

    fn print(&self, measured: &[Measured], nodes: Option<&Nodes>) -> Result<()> {
        let rows: Vec<_> = measured
            .iter()
            .map(|Measured { way, first, next, long }| {
                let pair = |times: &[Times; 2], value: &dyn Fn(&Times) -> f64| {
                    let (idle, beside) = (value(&times[0]), value(&times[1]));
                    json!({"idle_ms": idle, "beside_ms": beside, "ratio": beside / idle})
                };
                json!({
                    "long_prompt": way, "samples": {"ttft": first[1].0.len(), "itl": next[1].0.len()},
                    "ttft_median": pair(first, &|times| times.percentile(50.0)), "ttft_p95": pair(first, &|times| times.percentile(95.0)),
                    "itl_mean": pair(next, &Times::mean), "itl_median": pair(next, &|times| times.percentile(50.0)),
                    "itl_p95": pair(next, &|times| times.percentile(95.0)),
                    "long_seconds": {"alone": long[0], "beside_short_prompts": long[1], "beside_answers": long[2]},
                })
            })
            .collect();
        if self.json {
            return crate::ask::print(&serde_json::to_string_pretty(&rows)?);
        }
        let mut text = format!(
            "a prompt of {} tokens beside a short one of {} and {} answers; {}\n\n{:14}{:14}{:>10}{:>10}{:>8}",
            self.long,
            self.short,
            self.streams,
            place(nodes),
            "long prompt",
            "measure",
            "idle ms",
            "beside",
            "ratio"
        );
        for row in &rows {
            for measure in ["ttft_median", "ttft_p95", "itl_mean", "itl_median", "itl_p95"] {
                let value = |name: &str| row[measure][name].as_f64().unwrap_or(f64::NAN);
                text += &format!(
                    "\n{:14}{measure:14}{:10.2}{:10.2}{:8.2}",
                    row["long_prompt"].as_str().unwrap_or_default(),
                    value("idle_ms"),
                    value("beside_ms"),
                    value("ratio")
                );
            }
            let long = |name: &str| row["long_seconds"][name].as_f64().unwrap_or(f64::NAN);
            text += &format!(
                "\n{:14}the prompt itself: {:.1} s alone, {:.1} s beside short prompts, {:.1} s beside answers",
                row["long_prompt"].as_str().unwrap_or_default(),
                long("alone"),
                long("beside_short_prompts"),
                long("beside_answers")
            );
        }
        crate::ask::print(&text)
    }
}

/// A long prompt on its way.
struct Long {
    ended: Arc<AtomicBool>,
    run: std::thread::JoinHandle<Result<Duration>>,
}

impl Long {
    /// Starts it; it is being computed when this returns.
    fn start(url: &str, tokens: usize, seed: usize) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (url, mine) = (url.to_owned(), Arc::clone(&ended));
        let run = std::thread::spawn(move || {
            let started = Instant::now();
            let result = follow(&url, &prompt(tokens, seed), 1, |_| true);
            mine.store(true, Ordering::Relaxed);
            result.map(|()| started.elapsed())
        });
        std::thread::sleep(Duration::from_millis(300));
        Self { ended, run }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// How long it took.
    fn end(self) -> Result<Duration> {
        self.run
            .join()
            .map_err(|_| anyhow::anyhow!("the long request panicked"))?
    }
}

/// A processor for the output pod and another one for the stages, where there are two.
fn nodes() -> Option<Nodes> {
    let Cpus(cpus) = Cpus::first(2).ok()?;
    Some(Nodes {
        output: Cpus(vec![cpus[1]]),
        stages: Cpus(vec![cpus[0]]),
    })
}

/// Where it was measured.
fn place(nodes: Option<&Nodes>) -> String {
    let load = machine::load().map_or_else(|| "unknown".into(), |load| format!("{load:.1}"));
    let kept = nodes.map_or_else(
        || "all on the same processors".into(),
        |Nodes { output, stages }| {
            format!(
                "the output pod on processor {}, stages and clients on {}",
                output.0[0], stages.0[0]
            )
        },
    );
    format!("{kept}; load {load}")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Ids of plain bytes; no two seeds share a beginning.
fn prompt(tokens: usize, seed: usize) -> Vec<u64> {
    let mut state = seed as u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        20 + (state >> 33) % 90
    };
    (0..tokens).map(|_| next()).collect()
}

/// One request; `each` hears when a part of the answer came, and says whether to go on.
fn follow(url: &str, prompt: &[u64], tokens: u64, mut each: impl FnMut(Instant) -> bool) -> Result<()> {
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true});
    let response = ureq::post(format!("{url}/v1/completions")).send_json(&body)?;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        ensure!(!line.contains("\"error\""), "{line}");
        if line.starts_with("data: {") && !each(Instant::now()) {
            break;
        }
    }
    Ok(())
}
