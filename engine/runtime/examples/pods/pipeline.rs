//! Prefill by two and three stages of equal length, one core each, beside one process on one core.
//!
//! Two stages run as they are: two processes on two processors, by the wall clock. For three there may be too few processors, and other programs
//! may be on these. So what was measured is put together too: the time that each computing thread ran for each chunk (Linux counts it, whoever
//! else is on the machine) goes through the schedule of the pipeline: a stage begins a chunk when it has ended the one before, and the stage
//! before it has ended the same. Two stages' times are those of the two processes as they ran, pieces of chunks and all. Three stages compute
//! every chunk by themselves, and as much slower as the two do in their processes.
//!
//! What a pod's other threads run (frames, HTTP/2, the kernel's part of the hop) is added to every stage and chunk.
//!
//! Whoever shares the machine slows the computing too, through its memory and caches, for seconds and by up to a half. So what is compared runs
//! chunk by chunk in turns where it can, everything in several rounds, and of every chunk the round counts that was disturbed least.

use std::fs::DirEntry;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ds4_gguf::LayerSpan;
use ds4_model::{Kv, ModelSlice};
use tokio::runtime::Runtime;

use crate::Options;
use crate::pods::{ask, engine_of, engine_options, even, load, load_all, prompt, spawn, write};
use crate::timed::{Timed, Times};

/// Tokens that pass the stages last, as the engine splits prompts.
const TAIL: usize = 32;
const ONE: [(usize, usize); 1] = [(0, 11)];
const TWO: [(usize, usize); 2] = [(0, 5), (6, 11)];
const THREE: [(usize, usize); 3] = [(0, 3), (4, 7), (8, 11)];

/// Seconds that all threads of a process have run. Of one that runs just now Linux tells what it had at the last tick.
fn process(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let run_time = |task: DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    };
    tasks.filter_map(Result::ok).map(run_time).sum()
}

fn chunks(tokens: usize, chunk: usize) -> Vec<Range<usize>> {
    let mut edges: Vec<usize> = (0..tokens).step_by(chunk).collect();
    if tokens - edges.last().unwrap() > 2 * TAIL {
        edges.push(tokens - TAIL);
    }
    edges.push(tokens);
    edges.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Seconds of each chunk, by the pieces that it was computed in.
fn by_chunk(times: &Times, chunks: &[Range<usize>]) -> Vec<f64> {
    let of = |chunk: &Range<usize>| times.range(chunk.start as u64..chunk.end as u64);
    chunks
        .iter()
        .map(|chunk| of(chunk).map(|(_, time)| time).sum())
        .collect()
}

/// Of every chunk the least so far.
fn keep_least(least: &mut Vec<f64>, new: Vec<f64>) {
    if least.is_empty() {
        *least = new;
    } else {
        let pairs = least.iter_mut().zip(new);
        pairs.for_each(|(least, new)| *least = least.min(new));
    }
}

/// A stage that computes by itself.
struct Alone {
    slice: Arc<Timed>,
    kv: Kv,
    /// Seconds of each chunk.
    times: Vec<f64>,
}

impl Alone {
    fn load(model: &Path, (first, last): (usize, usize)) -> Self {
        let slice = Timed::of(load(model, first, last));
        let kv = empty(&slice);
        Self {
            slice,
            kv,
            times: Vec::new(),
        }
    }
}

fn empty(slice: &Timed) -> Kv {
    let info = slice.info();
    let span = LayerSpan {
        head: false,
        ..info.span
    };
    Kv::new(&info.layout, span)
}

/// Stages that compute one after the other.
struct Pipeline(Vec<Alone>);

impl Pipeline {
    fn load(model: &Path, spans: &[(usize, usize)]) -> Self {
        Self(spans.iter().map(|span| Alone::load(model, *span)).collect())
    }

    /// Seconds of the next tokens on the wall.
    fn compute(&mut self, tokens: &[u32]) -> f64 {
        let started = Instant::now();
        let mut hidden = self.0[0].slice.embed(tokens).unwrap();
        for stage in &mut self.0 {
            stage.slice.forward(tokens, &mut hidden, &mut stage.kv).unwrap();
        }
        started.elapsed().as_secs_f64()
    }

    /// The prompt is over.
    fn end(&mut self, chunks: &[Range<usize>]) {
        for stage in &mut self.0 {
            keep_least(&mut stage.times, by_chunk(&stage.slice.take(), chunks));
            stage.kv = empty(&stage.slice);
        }
    }

    fn seconds(&self) -> f64 {
        self.0.iter().flat_map(|stage| &stage.times).sum()
    }

    /// Each chunk's seconds, stage by stage, `times` as long.
    fn stretched(&self, times: f64) -> Vec<Vec<f64>> {
        let stretch = |stage: &Alone| stage.times.iter().map(|time| time * times).collect();
        self.0.iter().map(stretch).collect()
    }
}

/// Two processes, as they run.
struct Pods {
    whole: Arc<Timed>,
    /// Seconds of each chunk's computing, stage by stage.
    times: Vec<Vec<f64>>,
    /// Seconds on the wall, and of all threads but the computing ones, of both.
    wall: f64,
    beside: f64,
}

impl Pods {
    async fn round(&mut self, options: &Options, prompt: &[u32], chunk: usize, chunks: &[Range<usize>]) {
        let pod = spawn(options, TWO[0].0, TWO[0].1, options.get("stage-cpu")).await;
        let endpoints = vec![pod.endpoint.clone()];
        let engine = engine_of(
            self.whole.clone(),
            TWO[1].0,
            endpoints,
            engine_options(chunk, None),
        )
        .await;
        let spent = || process(pod.pid) + process(std::process::id());
        let (before, started) = (spent(), Instant::now());
        let answer = ask(&engine, prompt.to_vec(), 1).await;
        let wall = started.elapsed().as_secs_f64();
        assert_eq!(answer.decision.label(), "disaggregated");
        let spent = spent() - before;
        let times = [pod.times().await, self.whole.take()];
        let computed: f64 = times.iter().flat_map(Times::values).sum();
        self.wall = self.wall.min(wall);
        self.beside = self.beside.min(spent - computed);
        for (least, times) in self.times.iter_mut().zip(times) {
            keep_least(least, by_chunk(&times, chunks));
        }
    }

    /// Seconds of each chunk and side that other threads than the computing ones run.
    fn hop(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // chunks
        let sides = (self.times[0].len() * 2) as f64;
        self.beside / sides
    }

    /// How many times as long as by themselves the stages compute.
    fn stretch(&self, alone: &Pipeline) -> f64 {
        self.times.iter().flatten().sum::<f64>() / alone.seconds()
    }
}

/// When the last stage has ended the last chunk, and what share of the time the stages wait.
fn schedule(stages: &[Vec<f64>], hop: f64) -> (f64, f64) {
    let mut free = vec![0.0_f64; stages.len()];
    for chunk in 0..stages[0].len() {
        let mut ready = 0.0_f64;
        for (free, times) in free.iter_mut().zip(stages) {
            ready = ready.max(*free) + times[chunk] + hop;
            *free = ready;
        }
    }
    let total = free.last().copied().unwrap();
    let busy: f64 = stages.iter().flatten().map(|time| time + hop).sum();
    #[allow(clippy::cast_precision_loss)] // two or three
    let bubble = 1.0 - busy / (total * stages.len() as f64);
    (total, bubble)
}

pub fn measure(options: &Options, runtime: &Runtime) {
    let model = Path::new(options.get("model").expect("--model"));
    write(model, &even());
    let (tokens, chunk) = (options.number("tokens", 9421), options.number("chunk", 128));
    let (prompt, chunks) = (prompt(1, tokens), chunks(tokens, chunk));
    let mut alone = [&ONE[..], &TWO[..], &THREE[..]].map(|spans| Pipeline::load(model, spans));
    let mut one_wall = f64::INFINITY;
    let mut pods = Pods {
        whole: Timed::of(load_all(model)),
        times: vec![Vec::new(); 2],
        wall: f64::INFINITY,
        beside: f64::INFINITY,
    };
    let rounds = options.number("rounds", 3);
    for round in 1..=rounds {
        let mut wall = 0.0;
        for range in &chunks {
            let seconds = alone
                .each_mut()
                .map(|stages| stages.compute(&prompt[range.clone()]));
            wall += seconds[0];
        }
        alone.iter_mut().for_each(|stages| stages.end(&chunks));
        one_wall = one_wall.min(wall);
        runtime.block_on(pods.round(options, &prompt, chunk, &chunks));
        eprintln!(
            "  {tokens} tokens, round {round} of {rounds}, at best: one process {one_wall:.2} s on the wall, two {:.2} s; a hop {:.2} ms a chunk",
            pods.wall,
            1e3 * pods.hop(),
        );
    }
    let [one, two, three] = &alone;
    let (hop, stretch) = (pods.hop(), pods.stretch(two));
    let three = three.stretched(stretch.max(1.0));
    let ((two, two_bubble), (three, three_bubble)) = (schedule(&pods.times, hop), schedule(&three, hop));
    println!(
        "{}",
        serde_json::json!({
            "tokens": tokens, "chunk": chunk, "one": one.seconds(), "one_wall": one_wall, "two_wall": pods.wall,
            "hop": hop, "stretch": stretch, "two": two, "two_bubble": two_bubble, "three": three, "three_bubble": three_bubble,
        })
    );
}
