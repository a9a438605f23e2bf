//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod bench_policy;
pub(crate) mod bench_serve;
pub(crate) mod chat;
pub(crate) mod fetch;
pub(crate) mod health;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod stage;
pub(crate) mod synth;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use ds4_runtime::{EngineOptions, OnFailure, Policy, Tls};

use crate::args::{Arguments, OnFailureArgument, PolicyArgument, RouteArguments, TlsArguments};

/// Prints a completion script.
pub(crate) fn completion(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Arguments::command(), "ds4", &mut std::io::stdout());
}

/// Reads a JSON array of token ids.
fn read_tokens(path: &Path, vocabulary: usize) -> Result<Vec<u32>> {
    let named = || format!("{}: expected a JSON array of token ids", path.display());
    let tokens: Vec<u32> =
        serde_json::from_slice(&std::fs::read(path).with_context(named)?).with_context(named)?;
    ensure!(
        !tokens.is_empty(),
        "{}: expected at least one token, found none",
        path.display()
    );
    let wrong = tokens.iter().find(|token| **token as usize >= vocabulary);
    ensure!(
        wrong.is_none(),
        "{}: expected ids below {vocabulary}, found {}",
        path.display(),
        wrong.unwrap_or(&0)
    );
    Ok(tokens)
}

/// The certificates in the folder of the flag, watched for changes.
fn certificates(arguments: &TlsArguments) -> Result<Option<Arc<Tls>>> {
    let Some(folder) = &arguments.tls_dir else {
        return Ok(None);
    };
    let tls = Tls::open(folder).context("--tls-dir")?;
    tls.watch();
    Ok(Some(tls))
}

/// The engine's options as the flags say.
fn options(route: &RouteArguments, context: usize, eos: Vec<u32>) -> Result<EngineOptions> {
    ensure!(
        route.prefill_chunk > 0,
        "--prefill-chunk: expected at least 1, found 0"
    );
    ensure!(
        route.handoff_streams > 0,
        "--handoff-streams: expected at least 1, found 0"
    );
    Ok(EngineOptions {
        streams: route.handoff_streams,
        frame_bytes: usize::try_from(route.frame_bytes).unwrap_or(usize::MAX),
        kv_budget: route.kv_budget,
        kept_budget: route.kept_budget.unwrap_or(u64::MAX),
        tls: certificates(&route.tls)?,
        prefill_chunk: route.prefill_chunk,
        window: route.window,
        min_prompt_tokens: route.min_prompt_tokens,
        handoff_timeout: route.handoff_timeout,
        max_tokens: route.max_context.unwrap_or(context as u64),
        policy: match route.policy {
            PolicyArgument::Adaptive => Policy::Adaptive,
            PolicyArgument::Always => Policy::Always,
            PolicyArgument::Never => Policy::Never,
        },
        on_failure: match route.on_failure {
            OnFailureArgument::RecomputeLocally => OnFailure::RecomputeLocally,
            OnFailureArgument::Fail => OnFailure::Fail,
        },
        eos,
        ..EngineOptions::default()
    })
}
