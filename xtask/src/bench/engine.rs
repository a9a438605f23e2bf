//! `cargo xtask bench engine`: our engine and llama.cpp on one file, in turns, on the same processors.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::antirez::{Antirez, Speed};
use super::checks;
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
/// Tokens before a batch decodes, and of the prompt that antirez/ds4 is measured with.
const BATCH_DEPTH: usize = 128;
/// Prompts and depths beyond this take minutes: they are measured in the first round alone.
const SHORT: usize = 2048;
/// Tokens that antirez/ds4 generates: it takes a fifth of a second for each.
const ANTIREZ_GENERATES: usize = 16;

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// Time to load the model.
    Load,
    /// Prompts, from nothing.
    Prefill,
    /// One session, at several depths.
    Decode,
    /// Several sessions at once.
    Batch,
    /// The most memory of a process.
    Memory,
    /// One long session: what a token costs as it grows.
    Growth,
    /// antirez/ds4, when --ds4 says where it is.
    Ds4,
}

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
    /// Only these parts.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure antirez/ds4's CPU path too: a checkout of it, built with this file's shapes.
    #[arg(long, value_name = "PATH")]
    ds4: Option<PathBuf>,
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
    antirez: Option<Antirez>,
    only: Vec<Part>,
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
        let mut bench = self.prepare(&cpus)?;
        cpus.pin()?;
        let peer = bench.tune()?;
        let (shapes, line) = bench.locked(|| bench.ds4.machine(&bench.ours()))?;
        let mut report = bench.setting(&plan, &cpus, &shapes, &line);
        report
            .setting
            .extend(peer.map(|found| ("llama.cpp".into(), found)));
        report.figures = bench.rounds(&plan, &shapes, &line)?;
        report.checks = checks::of_figures(&report.figures);
        report.checks.extend(checks::matmuls(&shapes));
        if bench.wants(Part::Memory) {
            report.checks.extend(bench.memory()?);
        }
        if let Some(speed) = bench.antirez_speed()? {
            let found = format!("prefill {:.1} t/s, decode {:.1} t/s", speed.prefill, speed.decode);
            report.setting.push(("antirez/ds4, CPU".into(), found));
            report.checks.extend(bench.over_antirez(speed)?);
        }
        let mut chart = None;
        if bench.wants(Part::Growth) {
            let growth = bench.growth(&plan)?;
            report.checks.extend(growth.checks(1.6, 1.3)?);
            chart = Some(growth.svg("llama.cpp", checks::peer_decode(&report.figures, plan.depths)));
        }
        write(&report, chart.as_deref(), self.json.as_deref())
    }

    fn prepare(&self, cpus: &Cpus) -> Result<Bench> {
        let ds4 = Ds4::build()?;
        let llama = if self.no_peer { None } else { Some(Llama::build()?) };
        let model = self.model.clone().map_or_else(|| ds4.medium(), Ok)?;
        let wanted = self
            .ds4
            .as_deref()
            .filter(|_| self.only.is_empty() || self.only.contains(&Part::Ds4));
        let antirez = wanted
            .map(|checkout| Antirez::build(checkout, &ds4.inspect(&model)?))
            .transpose()?;
        let open = |path: &PathBuf| File::create(path).with_context(|| format!("--lock {}", path.display()));
        Ok(Bench {
            ds4,
            llama,
            antirez,
            only: self.only.clone(),
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

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// What of a list of figures is measured at all: all of it when its part is.
    fn figures<T: Copy>(&self, part: Part, of: &[T], make: impl Fn(T) -> Figure) -> Vec<Figure> {
        let wanted = if self.wants(part) { of } else { &[] };
        wanted.iter().copied().map(make).collect()
    }

    fn theirs(&self) -> llama::Setting<'_> {
        llama::Setting {
            model: &self.model,
            threads: self.threads,
            mask: self.mask.clone(),
        }
    }

    /// The peer in its fastest setting; what was found.
    fn tune(&mut self) -> Result<Option<String>> {
        let Some(mut llama) = self.llama.take() else {
            return Ok(None);
        };
        let found = self.locked(|| llama.tune(&self.theirs()))?;
        self.llama = Some(llama);
        Ok(Some(found))
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
        let mut load = self.figures(Part::Load, &[()], |()| Figure::new("load", Unit::Seconds));
        let mut prefill = self.figures(Part::Prefill, plan.prompts, |tokens| {
            prefill_figure(tokens, shapes, line)
        });
        let mut decode = self.figures(Part::Decode, plan.depths, |depth| {
            decode_figure(depth, shapes, line)
        });
        let mut batch = self.figures(Part::Batch, plan.batches, |batch| {
            batch_figure(batch, shapes, line)
        });
        let mut peak = Figure::new(format!("peak memory, {} tokens", plan.longest()), Unit::Bytes);
        for round in 1..=plan.rounds {
            eprintln!("  … round {round} of {}", plan.rounds);
            let due = |tokens: usize| round == 1 || tokens <= SHORT;
            for figure in &mut load {
                self.load(figure)?;
            }
            for (figure, tokens) in prefill.iter_mut().zip(plan.prompts) {
                if due(*tokens) {
                    self.prefill(figure, &mut peak, *tokens, plan)?;
                }
            }
            for (figure, depth) in decode.iter_mut().zip(plan.depths) {
                if due(*depth) {
                    self.decode(figure, *depth, plan.generate)?;
                }
            }
            for (figure, batch) in batch.iter_mut().zip(plan.batches) {
                self.batch(figure, *batch, plan.generate)?;
            }
        }
        let all = load.into_iter().chain(prefill).chain(decode).chain(batch);
        Ok(all
            .chain([peak])
            .filter(|figure| !figure.ours.0.is_empty())
            .collect())
    }

    fn load(&self, figure: &mut Figure) -> Result<()> {
        let ours = || Ok(self.ds4.prefill(&self.ours(), 1)?.0.load_seconds);
        self.sample(figure, ours, |llama| {
            let timed = llama.load(&self.theirs())?;
            Ok(timed.run.took.as_secs_f64() - timed.seconds)
        })
    }

    fn decode(&self, figure: &mut Figure, depth: usize, tokens: usize) -> Result<()> {
        let ours = || {
            self.ds4
                .decode(&self.ours(), &[depth], 1, tokens)?
                .0
                .rate("decode")
        };
        self.sample(figure, ours, |llama| {
            Ok(llama.decode(&self.theirs(), depth, tokens)?.rate)
        })
    }

    fn batch(&self, figure: &mut Figure, batch: usize, tokens: usize) -> Result<()> {
        let ours = || {
            let measured = self.ds4.decode(&self.ours(), &[BATCH_DEPTH], batch, tokens)?.0;
            measured.rate("decode")
        };
        self.sample(figure, ours, |llama| {
            Ok(llama.batch(&self.theirs(), BATCH_DEPTH, batch, tokens)?.rate)
        })
    }

    fn antirez_speed(&self) -> Result<Option<Speed>> {
        let measure = |antirez: &Antirez| {
            eprintln!("  … antirez/ds4, {BATCH_DEPTH} tokens");
            self.locked(|| antirez.speed(&self.model, self.threads, BATCH_DEPTH, ANTIREZ_GENERATES))
        };
        self.antirez.as_ref().map(measure).transpose()
    }

    /// Ours on the same prompt, right behind it.
    fn over_antirez(&self, theirs: Speed) -> Result<Vec<Check>> {
        let prefill = self.locked(|| self.ds4.prefill(&self.ours(), BATCH_DEPTH)?.0.rate("prefill"))?;
        let decode = self.locked(|| {
            let measured = self
                .ds4
                .decode(&self.ours(), &[BATCH_DEPTH], 1, ANTIREZ_GENERATES)?
                .0;
            measured.rate("decode")
        })?;
        Ok(checks::over_antirez(
            [prefill / theirs.prefill, decode / theirs.decode],
            BATCH_DEPTH,
        ))
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

    /// Peak memory over weights and KV, of chunks as they are set and of one long chunk.
    fn memory(&self) -> Result<Vec<Check>> {
        let of_chunk = |chunk: usize| {
            let setting = ds4::Setting { chunk, ..self.ours() };
            let (measured, run) = self.locked(|| self.ds4.prefill(&setting, SHORT))?;
            Ok((run.peak_bytes > 0).then(|| Check {
                name: format!("peak memory over weights and KV, {SHORT} tokens in chunks of {chunk}"),
                found: bytes(run.peak_bytes) / (measured.weight_bytes + measured.kv_bytes),
                limit: 1.1,
                at_least: false,
            }))
        };
        let checks: Result<Vec<_>> = [self.chunk, SHORT].into_iter().map(of_chunk).collect();
        Ok(checks?.into_iter().flatten().collect())
    }

    fn growth(&self, plan: &Plan) -> Result<Growth> {
        eprintln!(
            "  … one long session, to {} tokens",
            plan.growth.last().unwrap_or(&0)
        );
        let (measured, _) = self.locked(|| self.ds4.decode(&self.ours(), plan.growth, 1, plan.generate))?;
        Growth::of(&measured)
    }

    fn setting(&self, plan: &Plan, cpus: &Cpus, shapes: &Measured, line: &Roofline) -> Report {
        let name = self
            .model
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let machine = format!(
            "{}; measured with {} threads: reads {:.1} GB/s, copies {:.1} GB/s, int8 {:.0} GOP/s ({}){}",
            machine::processor(),
            self.threads,
            line.read_bytes_per_second / 1e9,
            line.copy_bytes_per_second / 1e9,
            line.int8_operations_per_second / 1e9,
            line.int8_with,
            line.int8_operations_per_second_of_tiles
                .map_or_else(String::new, |tiles| format!(
                    ", {:.0} GOP/s (AMX tiles)",
                    tiles / 1e9
                ))
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
                format!(
                    "{}, ours and theirs in turn within each; beyond {SHORT} tokens the first one alone",
                    plan.rounds
                ),
            ),
        ];
        Report {
            title: "bench engine".into(),
            peer: self.llama.as_ref().map(|_| Llama::NAME.into()),
            setting: setting.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            notes: vec![
                "The limit of prefill is the measured int8 peak of vectors over a token's int8 operations (all else counted as nothing; tiles have \
                 a higher peak, of which blocks of 32 values get nothing), that of decode \
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
        by: "int8 vector peak",
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

fn write(report: &Report, chart: Option<&str>, json: Option<&Path>) -> Result<()> {
    let folder = repository::cache().join("bench/engine");
    std::fs::create_dir_all(&folder)?;
    let (markdown, object) = (report.markdown(), serde_json::to_string_pretty(report)?);
    let picture = if chart.is_some() {
        "\n![cost growth](growth.svg)\n"
    } else {
        ""
    };
    std::fs::write(folder.join("report.md"), format!("{markdown}{picture}"))?;
    std::fs::write(folder.join("report.json"), &object)?;
    if let Some(chart) = chart {
        std::fs::write(folder.join("growth.svg"), chart)?;
    }
    if let Some(path) = json {
        std::fs::write(path, &object).with_context(|| format!("--json {}", path.display()))?;
    }
    crate::ask::print(&markdown)?;
    eprintln!("  ✓ {}", folder.display());
    Ok(())
}
