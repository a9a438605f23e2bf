//! `cargo xtask bench engine`: our engine and llama.cpp on one file, in turns, on the same processors.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::ds4::{self, Ds4, Measured, Roofline};
use super::growth::Growth;
use super::llama::{self, Llama};
use super::machine::{self, Cpus};
use super::report::{Bound, Check, Figure, Report, Unit};
use crate::repository;

/// How much faster prefill is to be than the peer's.
const PREFILL_GOAL: f64 = 3.0;
/// How much faster decode is to be than the peer's.
const DECODE_GOAL: f64 = 1.3;
/// The prompts that the prefill goal is about.
const GOAL_PROMPTS: [usize; 2] = [512, 2048];
/// Tokens before a batch decodes.
const BATCH_DEPTH: usize = 128;

/// Options of the comparison.
#[derive(Args)]
pub struct Engine {
    /// Measure this file [default: the medium random model, made once].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Threads of both engines.
    #[arg(long, default_value_t = 2, value_name = "N")]
    threads: usize,
    /// Processors that everything runs on, such as 0,1 or 0-3 [default: the first, as many as threads].
    #[arg(long, value_name = "CPUS")]
    pin: Option<Cpus>,
    /// Rounds; each measures every figure once, ours and theirs in turn.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// One round of short figures.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Tokens in our prefill chunk.
    #[arg(long, default_value_t = 512, value_name = "N")]
    chunk: usize,
    /// Measure ours alone.
    #[arg(long)]
    no_peer: bool,
    /// Hold this lock (flock) around each measurement, so that whatever else holds it pauses.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Where the report goes too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
struct Plan {
    rounds: usize,
    prompts: &'static [usize],
    depths: &'static [usize],
    batches: &'static [usize],
    generate: usize,
    /// Depths of the long session.
    growth: &'static [usize],
}

const WHOLE: Plan = Plan {
    rounds: 3,
    prompts: &[128, 512, 2048, 8192],
    depths: &[0, 2048, 8192],
    batches: &[1, 4, 8],
    generate: 64,
    growth: &[2048, 4096, 8192, 16_384, 32_768],
};

const QUICK: Plan = Plan {
    rounds: 1,
    prompts: &[128, 512],
    depths: &[0],
    batches: &[1, 4],
    generate: 16,
    growth: &[512, 1024, 2048],
};

/// Everything a measurement needs.
struct Bench {
    ds4: Ds4,
    llama: Option<Llama>,
    model: PathBuf,
    threads: usize,
    chunk: usize,
    mask: String,
    lock: Option<File>,
}

impl Engine {
    /// Measures, prints the report and writes it.
    ///
    /// # Errors
    /// When something cannot be built or run.
    pub fn run(self) -> Result<()> {
        ensure!(
            self.threads > 0 && self.rounds > 0,
            "--threads and --rounds: expected at least 1, found 0"
        );
        let cpus = self.pin.clone().map_or_else(|| Cpus::first(self.threads), Ok)?;
        let plan = if self.quick {
            QUICK
        } else {
            Plan {
                rounds: self.rounds,
                ..WHOLE
            }
        };
        let bench = self.prepare(&cpus)?;
        cpus.pin()?;
        let (shapes, line) = bench.locked(|| bench.ds4.machine(&bench.ours()))?;
        let mut report = bench.setting(&plan, &cpus, &shapes, &line);
        report.figures = bench.rounds(&plan, &shapes, &line)?;
        report.checks = shares(&report.figures);
        report.checks.extend(bench.memory(&plan)?);
        eprintln!(
            "  … one long session, to {} tokens",
            plan.growth.last().unwrap_or(&0)
        );
        let growth = bench.growth(&plan)?;
        report.checks.extend(growth.checks(1.6, 1.3)?);
        report.checks.extend(batch_gain(&report.figures));
        let chart = growth.svg("llama.cpp", peer_decode(&report.figures, &plan));
        write(&report, &chart, self.json.as_deref())
    }

    fn prepare(&self, cpus: &Cpus) -> Result<Bench> {
        let ds4 = Ds4::build()?;
        let llama = if self.no_peer { None } else { Some(Llama::build()?) };
        let model = self.model.clone().map_or_else(|| ds4.medium(), Ok)?;
        let open = |path: &PathBuf| File::create(path).with_context(|| format!("--lock {}", path.display()));
        Ok(Bench {
            ds4,
            llama,
            model,
            threads: self.threads,
            chunk: self.chunk,
            mask: cpus.mask(),
            lock: self.lock.as_ref().map(open).transpose()?,
        })
    }
}

impl Bench {
    fn ours(&self) -> ds4::Setting<'_> {
        ds4::Setting {
            model: &self.model,
            threads: self.threads,
            chunk: self.chunk,
        }
    }

    fn theirs(&self) -> llama::Setting<'_> {
        llama::Setting {
            model: &self.model,
            threads: self.threads,
            mask: self.mask.clone(),
        }
    }

    fn locked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(lock) = &self.lock else { return work() };
        lock.lock().context("taking the lock")?;
        let done = work();
        lock.unlock().context("releasing the lock")?;
        done
    }

    /// One sample of a figure, ours and the peer's, one after the other.
    fn sample(
        &self,
        figure: &mut Figure,
        ours: impl FnOnce() -> Result<f64>,
        theirs: impl FnOnce(&Llama) -> Result<f64>,
    ) -> Result<()> {
        let value = self.locked(ours).with_context(|| figure.name.clone())?;
        figure.ours.0.push(value);
        if let Some(llama) = &self.llama {
            let value = self
                .locked(|| theirs(llama))
                .with_context(|| figure.name.clone())?;
            figure.theirs.0.push(value);
        }
        eprintln!("    {}", figure.last());
        Ok(())
    }

    fn rounds(&self, plan: &Plan, shapes: &Measured, line: &Roofline) -> Result<Vec<Figure>> {
        let mut prefill: Vec<_> = plan
            .prompts
            .iter()
            .map(|tokens| prefill_figure(*tokens, shapes, line))
            .collect();
        let mut decode: Vec<_> = plan
            .depths
            .iter()
            .map(|depth| decode_figure(*depth, shapes, line))
            .collect();
        let mut batch: Vec<_> = plan
            .batches
            .iter()
            .map(|batch| batch_figure(*batch, shapes, line))
            .collect();
        let mut load = Figure::new("load", Unit::Seconds);
        let mut peak = Figure::new(format!("peak memory, {} tokens", plan.longest()), Unit::Bytes);
        for round in 1..=plan.rounds {
            eprintln!("  … round {round} of {}", plan.rounds);
            self.sample(
                &mut load,
                || Ok(self.ds4.prefill(&self.ours(), 1)?.0.load_seconds),
                |llama| {
                    let timed = llama.load(&self.theirs())?;
                    Ok(timed.run.took.as_secs_f64() - timed.seconds)
                },
            )?;
            for (figure, tokens) in prefill.iter_mut().zip(plan.prompts) {
                self.prefill(figure, &mut peak, *tokens, plan)?;
            }
            for (figure, depth) in decode.iter_mut().zip(plan.depths) {
                let ours = || {
                    self.ds4
                        .decode(&self.ours(), &[*depth], 1, plan.generate)?
                        .0
                        .rate("decode")
                };
                self.sample(figure, ours, |llama| {
                    Ok(llama.decode(&self.theirs(), *depth, plan.generate)?.rate)
                })?;
            }
            for (figure, batch) in batch.iter_mut().zip(plan.batches) {
                let ours = || {
                    self.ds4
                        .decode(&self.ours(), &[BATCH_DEPTH], *batch, plan.generate)?
                        .0
                        .rate("decode")
                };
                let theirs = |llama: &Llama| {
                    Ok(llama
                        .batch(&self.theirs(), BATCH_DEPTH, *batch, plan.generate)?
                        .rate)
                };
                self.sample(figure, ours, theirs)?;
            }
        }
        Ok(prefill
            .into_iter()
            .chain(decode)
            .chain(batch)
            .chain([load, peak])
            .collect())
    }

    /// Speed, and of the longest prompt the peak of memory.
    fn prefill(&self, figure: &mut Figure, peak: &mut Figure, tokens: usize, plan: &Plan) -> Result<()> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        self.sample(
            figure,
            || {
                let (measured, run) = self.ds4.prefill(&self.ours(), tokens)?;
                ours.push(bytes(run.peak_bytes));
                measured.rate("prefill")
            },
            |llama| {
                let timed = llama.prefill(&self.theirs(), tokens)?;
                theirs.push(bytes(timed.run.peak_bytes));
                Ok(timed.rate)
            },
        )?;
        if tokens == plan.longest() {
            peak.ours.0.extend(ours);
            peak.theirs.0.extend(theirs);
        }
        Ok(())
    }

    /// Peak memory over weights and KV.
    fn memory(&self, plan: &Plan) -> Result<Option<Check>> {
        let (measured, run) = self.locked(|| self.ds4.prefill(&self.ours(), plan.longest()))?;
        Ok((run.peak_bytes > 0).then(|| Check {
            name: format!("peak memory over weights and KV, {} tokens", plan.longest()),
            found: bytes(run.peak_bytes) / (measured.weight_bytes + measured.kv_bytes),
            limit: 1.1,
            at_least: false,
        }))
    }

    fn growth(&self, plan: &Plan) -> Result<Growth> {
        let (measured, _) = self.locked(|| self.ds4.decode(&self.ours(), plan.growth, 1, plan.generate))?;
        Growth::of(&measured)
    }

    fn setting(&self, plan: &Plan, cpus: &Cpus, shapes: &Measured, line: &Roofline) -> Report {
        let name = self
            .model
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let machine = format!(
            "{}; measured with {} threads: reads {:.1} GB/s, copies {:.1} GB/s, int8 {:.0} GOP/s ({})",
            machine::processor(),
            self.threads,
            line.read_bytes_per_second / 1e9,
            line.copy_bytes_per_second / 1e9,
            line.int8_operations_per_second / 1e9,
            line.int8_with
        );
        let load = machine::load().map_or_else(|| "unknown".into(), |load| format!("{load:.1}"));
        let model = format!(
            "{name}, {:.2} GiB of weights",
            shapes.weight_bytes / f64::from(1 << 30)
        );
        let token = format!(
            "{:.0} MB of weights touched, {:.2} G int8 operations before the head",
            shapes.work_per_token.bytes(1) / 1e6,
            shapes.work_per_token.int8_operations / 1e9
        );
        let setting = [
            ("machine", machine),
            ("load before", format!("{load} processes")),
            ("model", model),
            ("a token", token),
            ("ours", format!("{}, chunks of {}", shapes.backend, self.chunk)),
            ("pinned to", format!("processors {:?}", cpus.0)),
            (
                "rounds",
                format!("{}, ours and theirs in turn within each", plan.rounds),
            ),
        ];
        Report {
            title: "bench engine".into(),
            peer: self.llama.as_ref().map(|_| Llama::NAME.into()),
            setting: setting.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            notes: vec![
                "The limit of prefill is the measured int8 peak over a token's int8 operations (all else counted as nothing), that of decode \
                 the measured read bandwidth over the weights that a step touches (experts by chance, KV counted as nothing)."
                    .into(),
            ],
            ..Report::default()
        }
    }
}

impl Plan {
    fn longest(&self) -> usize {
        self.prompts.iter().copied().max().unwrap_or(0)
    }
}

#[allow(clippy::cast_precision_loss)] // bytes of a process
fn bytes(count: u64) -> f64 {
    count as f64
}

fn prefill_figure(tokens: usize, shapes: &Measured, line: &Roofline) -> Figure {
    let bound = Bound {
        value: line.int8_operations_per_second / shapes.work_per_token.int8_operations,
        by: "int8 peak",
    };
    Figure {
        goal: GOAL_PROMPTS.contains(&tokens).then_some(PREFILL_GOAL),
        bound: Some(bound),
        ..Figure::new(format!("prefill {tokens}"), Unit::TokensPerSecond)
    }
}

fn decode_figure(depth: usize, shapes: &Measured, line: &Roofline) -> Figure {
    Figure {
        goal: Some(DECODE_GOAL),
        ..batched(format!("decode at {depth}"), 1, shapes, line)
    }
}

fn batch_figure(batch: usize, shapes: &Measured, line: &Roofline) -> Figure {
    batched(format!("decode of {batch} at {BATCH_DEPTH}"), batch, shapes, line)
}

fn batched(name: String, batch: usize, shapes: &Measured, line: &Roofline) -> Figure {
    #[allow(clippy::cast_precision_loss)] // a few sessions
    let sessions = batch as f64;
    let bound = Bound {
        value: sessions * line.read_bytes_per_second / shapes.work_per_token.bytes(batch),
        by: "memory bandwidth",
    };
    Figure {
        bound: Some(bound),
        ..Figure::new(name, Unit::TokensPerSecond)
    }
}

/// The shares of the machine's limits that are asked for.
fn shares(figures: &[Figure]) -> Vec<Check> {
    let share = |name: &str, limit: f64| {
        let figure = figures.iter().find(|figure| figure.name == name)?;
        let found = figure.ours.median()? / figure.bound.as_ref()?.value;
        let name = format!("{name}: share of {}", figure.bound.as_ref()?.by);
        Some(Check {
            name,
            found,
            limit,
            at_least: true,
        })
    };
    [
        share("prefill 512", 0.5),
        share("prefill 2048", 0.5),
        share("decode at 0", 0.7),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the largest batch gains over one session.
fn batch_gain(figures: &[Figure]) -> Option<Check> {
    let mut batches = figures
        .iter()
        .filter(|figure| figure.name.starts_with("decode of "));
    let (one, most) = (batches.next()?, batches.next_back()?);
    let name = format!("{} over {}", most.name, one.name);
    Some(Check {
        name,
        found: most.ours.median()? / one.ours.median()?,
        limit: 3.0,
        at_least: true,
    })
}

/// The peer's milliseconds per token at the depths that were measured, where an axis of powers of two can show them.
#[allow(clippy::cast_precision_loss)] // depths
fn peer_decode(figures: &[Figure], plan: &Plan) -> Vec<(f64, f64)> {
    let point = |depth: &usize| {
        let name = format!("decode at {depth}");
        let figure = figures.iter().find(|figure| figure.name == name)?;
        Some((*depth as f64, 1e3 / figure.theirs.median()?))
    };
    plan.depths
        .iter()
        .filter(|depth| **depth > 0)
        .filter_map(point)
        .collect()
}

fn write(report: &Report, chart: &str, json: Option<&Path>) -> Result<()> {
    let folder = repository::cache().join("bench/engine");
    std::fs::create_dir_all(&folder)?;
    let (markdown, object) = (report.markdown(), serde_json::to_string_pretty(report)?);
    std::fs::write(
        folder.join("report.md"),
        format!("{markdown}\n![cost growth](growth.svg)\n"),
    )?;
    std::fs::write(folder.join("report.json"), &object)?;
    std::fs::write(folder.join("growth.svg"), chart)?;
    if let Some(path) = json {
        std::fs::write(path, &object).with_context(|| format!("--json {}", path.display()))?;
    }
    crate::ask::print(&markdown)?;
    eprintln!("  ✓ {}", folder.display());
    Ok(())
}
