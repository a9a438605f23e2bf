//! Prefill by two and three stages of equal length, one core each, beside one process on one core.
//!
//! Two stages run as they are: two processes on two processors, by the wall clock. Where there are not as many idle processors as stages, what
//! was measured is put together: every stage computes every chunk by itself and its thread's own time is taken (Linux counts it, whoever else
//! is on the machine), and these times go through the schedule of the pipeline: a stage begins a chunk when it has ended the one before, and
//! the stage before it has ended the same. What the hop costs a core (making frames, HTTP/2, the kernel's part) is what the two processes
//! spent beyond computing, by chunk, and is added to every stage.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ds4_gguf::LayerSpan;
use ds4_model::{Hidden, Kv, ModelSlice};
use tokio::runtime::Runtime;

use crate::Options;
use crate::pods::{ask, engine, engine_options, even, load, prompt, spawn, write};

/// Tokens that pass the stages last, as the engine splits prompts.
const TAIL: usize = 32;

/// Nanoseconds that a thread or process has run.
fn run_time(path: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn this_thread() -> f64 {
    run_time("/proc/thread-self/schedstat")
}

/// Of all threads of a process.
fn process(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(Result::ok)
        .map(|task| run_time(task.path().join("schedstat").to_str().unwrap()))
        .sum()
}

fn chunks(tokens: usize, chunk: usize) -> Vec<std::ops::Range<usize>> {
    let mut edges: Vec<usize> = (0..tokens).step_by(chunk).collect();
    if tokens - edges.last().unwrap() > 2 * TAIL {
        edges.push(tokens - TAIL);
    }
    edges.push(tokens);
    edges.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Seconds of this thread for every chunk on the layers of `slice`; `hidden` goes in and comes out.
fn alone(slice: &Arc<dyn ModelSlice>, prompt: &[u32], chunk: usize, hidden: &mut Vec<Hidden>) -> Vec<f64> {
    let span = slice.info().span;
    let mut kv = Kv::new(&slice.info().layout, LayerSpan { head: false, ..span });
    let mut times = Vec::new();
    for (i, range) in chunks(prompt.len(), chunk).into_iter().enumerate() {
        let tokens = &prompt[range];
        let started = this_thread();
        if span.first == 0 {
            hidden.push(slice.embed(tokens).unwrap());
        }
        slice.forward(tokens, &mut hidden[i], &mut kv).unwrap();
        times.push(this_thread() - started);
    }
    times
}

/// When the last stage has ended the last chunk.
fn schedule(stages: &[Vec<f64>]) -> f64 {
    let mut free = vec![0.0_f64; stages.len()];
    let mut end = 0.0;
    for chunk in 0..stages[0].len() {
        let mut ready = 0.0_f64;
        for (stage, times) in stages.iter().enumerate() {
            ready = ready.max(free[stage]) + times[chunk];
            free[stage] = ready;
        }
        end = ready;
    }
    end
}

/// The stages' times by themselves, put through the schedule.
fn replay(model: &Path, spans: &[(usize, usize)], prompt: &[u32], chunk: usize, hop: f64) -> (f64, f64) {
    let mut hidden = Vec::new();
    let mut stages = Vec::new();
    for (first, last) in spans {
        let slice = load(model, *first, *last);
        let times = alone(&slice, prompt, chunk, &mut hidden);
        stages.push(times.iter().map(|time| time + hop).collect::<Vec<_>>());
    }
    let total = schedule(&stages);
    let busy: f64 = stages.iter().flatten().sum();
    #[allow(clippy::cast_precision_loss)] // two or three
    let bubble = 1.0 - busy / (total * stages.len() as f64);
    (total, bubble)
}

/// Two processes: seconds on the wall, and processor seconds of a hop per chunk.
async fn two(options: &Options, model: &Path, prompt: &[u32], chunk: usize, computed: f64) -> (f64, f64) {
    let pod = spawn(options, 0, 5, options.get("stage-cpu")).await;
    let engine = engine(
        options,
        model,
        6,
        vec![pod.endpoint.clone()],
        engine_options(chunk, None),
    )
    .await;
    let before = process(pod.pid) + process(std::process::id());
    let started = Instant::now();
    let answer = ask(&engine, prompt.to_vec(), 1).await;
    let wall = started.elapsed().as_secs_f64();
    assert_eq!(answer.decision.label(), "disaggregated");
    let spent = process(pod.pid) + process(std::process::id()) - before;
    #[allow(clippy::cast_precision_loss)] // chunks
    let count = chunks(prompt.len(), chunk).len() as f64;
    // Both ends of the one hop share it.
    (wall, ((spent - computed) / count / 2.0).max(0.0))
}

pub fn measure(options: &Options, runtime: &Runtime) {
    let model = Path::new(options.get("model").expect("--model"));
    write(model, &even());
    let (tokens, chunk) = (options.number("tokens", 9421), options.number("chunk", 256));
    let prompt = prompt(1, tokens);
    let whole = load(model, 0, 11);
    let started = Instant::now();
    let one: f64 = alone(&whole, &prompt, chunk, &mut Vec::new()).iter().sum();
    let one_wall = started.elapsed().as_secs_f64();
    drop(whole);
    eprintln!("  {tokens} tokens: one process {one:.2} s of its processor, {one_wall:.2} s on the wall");
    let (two_wall, hop) = runtime.block_on(two(options, model, &prompt, chunk, one));
    eprintln!(
        "  two processes {two_wall:.2} s on the wall, a hop costs {:.2} ms a chunk",
        hop * 1e3
    );
    let (two, two_bubble) = replay(model, &[(0, 5), (6, 11)], &prompt, chunk, hop);
    let (three, three_bubble) = replay(model, &[(0, 3), (4, 7), (8, 11)], &prompt, chunk, hop);
    eprintln!("  schedule: two {two:.2} s, three {three:.2} s");
    println!(
        "{}",
        serde_json::json!({
            "tokens": tokens, "chunk": chunk, "one": one, "one_wall": one_wall, "two_wall": two_wall, "hop": hop,
            "two": two, "two_bubble": two_bubble, "three": three, "three_bubble": three_bubble,
        })
    );
}
