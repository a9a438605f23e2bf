//! How fast rows that are there go over, beside the same bytes over a raw stream of the same two processes; and what the receiver takes for it.

use std::path::Path;
use std::time::Instant;

use crate::pods::{Wire, ask, certificates, certify, engine, engine_options, flash, prompt, spawn, write};
use crate::{Options, heap, kept, raw};

/// Long enough that what is fixed (opening, the first and last frame) does not count.
const TOKENS: usize = 50_000;
/// The output pod has the last layer alone: rows that it makes itself take its processor's time, and are no part of what is measured.
const OWN: usize = 42;
const CHUNK: usize = 4096;

pub async fn measure(options: &Options) {
    let model = Path::new(options.get("model").expect("--model"));
    write(model, &flash());
    if let Some(folder) = options.get("tls") {
        certify(Path::new(folder));
    }
    let tls = certificates(options);
    let mut engine_options = engine_options(options.number("chunk", CHUNK), tls.clone());
    engine_options.kept_budget = 0;
    engine_options.frame_bytes = options.number("frame-bytes", engine_options.frame_bytes);
    let (streams, frame) = (u64::from(engine_options.streams), engine_options.frame_bytes);
    let pod = spawn(options, 0, OWN - 1, options.get("stage-cpu")).await;
    let engine = engine(options, model, OWN, vec![pod.endpoint.clone()], engine_options).await;
    let tokens = options.number("tokens", TOKENS);
    let layout = engine.slice().info().layout.clone();
    // Once for nothing: connections, and memory that stays.
    ask(&engine, prompt(0, tokens), 1).await;
    raw::take(&pod.raw, tls.as_ref(), 64 << 20, streams).await;
    let (mut rates, mut raw_rates, mut above, mut kept_rates) = (vec![], vec![], vec![], vec![]);
    for round in 0..options.number("rounds", 5) {
        let (before, wire) = (heap::now(), Wire::now());
        heap::most();
        let started = Instant::now();
        let answer = ask(&engine, prompt(round as u32 + 1, tokens), 1).await;
        let seconds = started.elapsed().as_secs_f64();
        let most = heap::most().saturating_sub(before);
        assert_eq!(answer.decision.label(), "disaggregated");
        let bytes = Wire::now().since(wire).kv;
        rates.push(bytes as f64 / answer.end.handed.duration.as_secs_f64().max(1e-9));
        let all = layout.bytes(0..layout.n_layer(), tokens as u64);
        above.push(most as f64 - all as f64);
        let raw = raw::take(&pod.raw, tls.as_ref(), bytes, streams).await;
        raw_rates.push(bytes as f64 / raw.as_secs_f64());
        kept_rates.push(kept::rate(&layout, OWN));
        eprintln!(
            "  round {round}: {bytes} bytes, {:.0} MB/s in the handoff, {:.0} MB/s with all around it, raw {:.0} MB/s",
            rates.last().unwrap() / 1e6,
            bytes as f64 / seconds / 1e6,
            raw_rates.last().unwrap() / 1e6
        );
    }
    println!(
        "{}",
        serde_json::json!({
            "bytes_per_second": rates, "raw_bytes_per_second": raw_rates, "bytes_above_kv": above, "kept_bytes_per_second": kept_rates,
            "frame_bytes": frame, "streams": streams,
        })
    );
}
