//! `ds4 logits`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use ds4_gguf::LayerSpan;
use ds4_runtime::{Engine, EngineOptions, LogitsReport, OnFailure, Policy};
use serde_json::json;

use super::read_tokens;
use crate::args::LogitsArguments;
use crate::{load, local_stages};

pub(crate) async fn run(arguments: LogitsArguments) -> Result<()> {
    ensure!(arguments.chunk > 0, "--chunk: expected at least 1, found 0");
    let model = load::open(&arguments.compute.model)?;
    let tokens = read_tokens(&arguments.tokens, model.config.n_vocab)?;
    let full = LayerSpan::full(model.config.n_layer);
    let stages = if arguments.stages.is_empty() {
        None
    } else {
        Some(local_stages::start(&arguments.stages, model.config.n_layer, &arguments.compute).await?)
    };
    let slice = load::load(
        &model,
        full,
        tokens.len() as u64,
        &arguments.compute,
        None,
        &|_| {},
    )?;
    let (own, addresses) = stages.as_ref().map_or((full, Vec::new()), |stages| {
        (stages.own, stages.addresses.clone())
    });
    let options = EngineOptions {
        prefill_chunk: arguments.chunk,
        handoff_timeout: arguments.handoff_timeout,
        on_failure: OnFailure::Fail,
        policy: Policy::Always,
        max_tokens: tokens.len() as u64,
        ..EngineOptions::default()
    };
    let engine = Engine::new(slice, own, addresses, options);
    engine.route_complete(arguments.handoff_timeout).await?;
    let report = write(&engine, &tokens, &arguments).await?;
    let summary = json!({
        "model": model.config.name, "tokens": tokens.len(), "vocabulary": model.config.n_vocab,
        "numerics": arguments.compute.numerics.to_string(), "backend": engine.slice().info().backend,
        "chunk": arguments.chunk, "stages": arguments.stages, "decision": report.decision.to_string(),
        "handoff_bytes": report.handoff_bytes, "seconds": report.elapsed.as_secs_f64(), "out": arguments.out.display().to_string(),
    });
    println!("{summary}");
    Ok(())
}

async fn write(engine: &Arc<Engine>, tokens: &[u32], arguments: &LogitsArguments) -> Result<LogitsReport> {
    let named = || arguments.out.display().to_string();
    let out = Arc::new(Mutex::new(BufWriter::new(
        File::create(&arguments.out).with_context(named)?,
    )));
    let writer = Arc::clone(&out);
    let each = move |logits: &[f32]| {
        let mut out = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        out.write_all(&bytes).map_err(|error| error.to_string())
    };
    let report = engine.logits(tokens, each).await?;
    out.lock()
        .map_err(|_| anyhow!("writing stopped"))?
        .flush()
        .with_context(named)?;
    Ok(report)
}
