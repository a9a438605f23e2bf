//! What one conversation at Flash's KV layout moves, and when.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_model::choice::Shaping;
use ds4_model::sampling::Sampling;
use ds4_runtime::{Engine, Event, Flow, Generate};

use crate::Options;
use crate::pods::{SPLIT, Wire, ask, engine, engine_options, flash, prompt, spawn, write};

/// Upstream's prompt, whose handoff was 112,289,000 bytes.
const TOKENS: usize = 15_316;
/// Tokens of the next turn.
const FOLLOW_UP: usize = 24;
const CHUNK: usize = 512;
/// Tokens before and in each measured decode.
const DEPTH: usize = 2048;
const DECODED: u32 = 96;
/// Nothing more comes after so long a pause.
const QUIET: Duration = Duration::from_millis(100);

pub async fn measure(options: &Options) {
    let model = Path::new(options.get("model").expect("--model"));
    write(model, &flash());
    let pod = spawn(options, 0, SPLIT - 1, options.get("stage-cpu")).await;
    let engine = engine(
        options,
        model,
        SPLIT,
        vec![pod.endpoint.clone()],
        engine_options(CHUNK, None),
    )
    .await;

    let start = prompt(1, options.number("tokens", TOKENS));
    let before = Wire::now();
    let first = ask(&engine, start.clone(), 2).await;
    assert_eq!(first.decision.label(), "disaggregated");
    let moved = Wire::now().since(before);
    eprintln!(
        "  {} tokens: {moved:?}, {:?}, {:?}",
        start.len(),
        first.end.handed,
        first.end.timings
    );

    let more = prompt(2, FOLLOW_UP - 2);
    let next: Vec<u32> = start.iter().chain(&first.tokens).chain(&more).copied().collect();
    let before = Wire::now();
    let second = ask(&engine, next, 1).await;
    assert_eq!(second.decision.label(), "disaggregated");
    let followed = Wire::now().since(before);
    eprintln!("  {FOLLOW_UP} more: {followed:?}, {:?}", second.end.handed);

    let decode = decode(&engine, model, options.number("rounds", 5)).await;
    let cancelled = cancelled(&engine, pod.pid, options.number("rounds", 5)).await;
    println!(
        "{}",
        serde_json::json!({
            "tokens": start.len(),
            "wire_bytes": moved.kv, "row_bytes": first.end.handed.bytes, "control_bytes": moved.control,
            "follow_up_wire_bytes": followed.kv, "follow_up_row_bytes": second.end.handed.bytes,
            "tail_bytes": first.end.handed.tail_bytes, "tail_ms": first.end.handed.tail.as_secs_f64() * 1e3,
            "shown_tail_ms": first.end.timings.handoff_tail.as_secs_f64() * 1e3,
            "decode": decode, "cancel_ms": cancelled,
        })
    );
}

/// Tokens per second of an answer after its first token.
#[allow(clippy::cast_precision_loss)] // counts
async fn rate(engine: &Arc<Engine>, prompt: Vec<u32>) -> (f64, Wire, Duration) {
    let mut generation = engine.generate(Generate {
        prompt,
        sampling: Sampling::GREEDY,
        shaping: Shaping::default(),
        max_tokens: DECODED,
        ignore_eos: true,
        flow: Flow::default(),
        deadline: None,
        parent: tracing::Span::none(),
    });
    let (mut first, mut wire, mut count) = (None, Wire::now(), 0);
    loop {
        match generation.next().await.expect("an end") {
            Event::Token(_) => {
                if first.is_none() {
                    (first, wire) = (Some(Instant::now()), Wire::now());
                }
                count += 1;
            }
            Event::Finished(_) => {
                let took = first.expect("a token").elapsed();
                return (
                    f64::from(count - 1) / took.as_secs_f64(),
                    Wire::now().since(wire),
                    took,
                );
            }
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// Decode after a handoff beside decode of a session that never left this process, in turns.
async fn decode(engine: &Arc<Engine>, model: &Path, rounds: usize) -> serde_json::Value {
    let none = Options(std::collections::BTreeMap::new());
    let alone = crate::pods::engine(&none, model, 0, Vec::new(), engine_options(CHUNK, None)).await;
    let (mut handed, mut local, mut kv, mut control, mut seconds) = (vec![], vec![], 0, 0, 0.0);
    for round in 0..rounds {
        let prompt = prompt(100 + round as u32, DEPTH);
        // First one, then the other way round.
        for which in [round % 2, 1 - round % 2] {
            if which == 0 {
                let (rate, wire, took) = rate(engine, prompt.clone()).await;
                handed.push(rate);
                (kv, control, seconds) = (kv + wire.kv, control + wire.control, seconds + took.as_secs_f64());
            } else {
                local.push(rate(&alone, prompt.clone()).await.0);
            }
        }
        eprintln!(
            "  decode: {:.2} t/s after a handoff, {:.2} local",
            handed[round], local[round]
        );
    }
    serde_json::json!({
        "handed": handed, "local": local, "kv_bytes": kv, "control_bytes": control, "seconds": seconds,
    })
}

/// Milliseconds from a client's leaving, in the middle of a prompt, until no thread of the stage runs any more.
async fn cancelled(engine: &Arc<Engine>, pid: u32, rounds: usize) -> Vec<f64> {
    let mut took = Vec::new();
    for round in 0..rounds {
        let mut generation = engine.generate(Generate {
            prompt: prompt(200 + round as u32, 8192),
            sampling: Sampling::GREEDY,
            shaping: Shaping::default(),
            max_tokens: 1,
            ignore_eos: true,
            flow: Flow::default(),
            deadline: None,
            parent: tracing::Span::none(),
        });
        while !matches!(generation.next().await, Some(Event::Prefill { .. })) {}
        assert!(runs(pid), "the stage has work");
        drop(generation);
        took.push(until_idle(pid).await.as_secs_f64() * 1e3);
    }
    took
}

/// How long from now something still runs.
async fn until_idle(pid: u32) -> Duration {
    let (began, mut busy) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < busy + QUIET {
        if runs(pid) {
            busy = began.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    busy
}

/// Whether any thread of `pid` runs or waits for a processor.
fn runs(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut states = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    });
    states.any(|state| state == 'R')
}
