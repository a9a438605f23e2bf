//! `ds4 run`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use ds4_gguf::LayerSpan;
use ds4_model::sampling::Sampling;
use ds4_runtime::{Decision, Engine, Event, Finished, Generate};
use ds4_tokenizer::chat::Chat;
use ds4_tokenizer::{Special, Tokenizer};
use serde_json::json;

use super::{options, read_tokens};
use crate::args::RunArguments;
use crate::{load, local_stages, telemetry};

/// What a run gave.
struct Outcome {
    tokens: Vec<u32>,
    text: String,
    decision: Decision,
    finished: Finished,
}

pub(crate) async fn run(arguments: RunArguments) -> Result<()> {
    let _telemetry = telemetry::start(&arguments.telemetry, "run", &arguments.layers)?;
    let model = load::open(&arguments.compute.model)?;
    let n_layer = model.config.n_layer;
    let tokenizer = Tokenizer::from_gguf(&model.gguf)?;
    let prompt = match (&arguments.prompt_tokens, &arguments.prompt) {
        (Some(path), _) => read_tokens(path, model.config.n_vocab)?,
        (None, text) => Chat::question(text.as_deref().unwrap_or_default()).tokens(&tokenizer),
    };
    let local = if local_stages::are_ranges(&arguments.stages) {
        Some(local_stages::start(&arguments.stages, n_layer, &arguments.compute).await?)
    } else {
        None
    };
    let (own, addresses) = match &local {
        Some(stages) => (stages.own, stages.addresses.clone()),
        None => (
            LayerSpan::parse(&arguments.layers, n_layer)?,
            arguments.stages.clone(),
        ),
    };
    let context = arguments
        .route
        .max_context
        .unwrap_or(model.config.context_length as u64);
    let head = load::draft_head(&arguments.compute.model, &arguments.draft)?;
    let slice = load::load(
        &model,
        LayerSpan::full(n_layer),
        context,
        &arguments.compute,
        head.as_ref(),
        &|_| {},
    )?;
    let eos = tokenizer.special(Special::Eos).into_iter().collect();
    let engine = Engine::new(
        slice,
        own,
        addresses,
        options(&arguments.route, model.config.context_length, eos)?,
    );
    engine.route_complete(arguments.route.handoff_timeout).await?;
    let prompt_tokens = prompt.len();
    let outcome = generate(&engine, &tokenizer, prompt, &arguments).await?;
    engine.shutdown().await;
    if let Some(path) = &arguments.tokens_out {
        std::fs::write(path, serde_json::to_vec(&outcome.tokens)?)
            .with_context(|| path.display().to_string())?;
    }
    report(&outcome, prompt_tokens, arguments.json);
    Ok(())
}

async fn generate(
    engine: &Arc<Engine>,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    arguments: &RunArguments,
) -> Result<Outcome> {
    let sampling = Sampling {
        temperature: arguments.temp,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        top_k: arguments.top_k,
        seed: arguments.seed,
    };
    let parent = tracing::info_span!("chat", otel.name = "ds4 run", decision = tracing::field::Empty);
    let (max_tokens, ignore_eos) = (arguments.max_tokens, arguments.ignore_eos);
    let mut generation = engine.generate(Generate {
        prompt,
        sampling,
        shaping: ds4_model::choice::Shaping::default(),
        max_tokens,
        ignore_eos,
        flow: ds4_runtime::Flow::default(),
        deadline: None,
        parent,
    });
    let mut decoder = tokenizer.decoder();
    let (mut tokens, mut text, mut decided) = (Vec::new(), String::new(), None);
    let bar = load::bar("prefill");
    while let Some(event) = generation.next().await {
        match event {
            Event::Prefill { done, total } => {
                bar.set_length(total.into());
                bar.set_position(done.into());
            }
            Event::Cached(_) | Event::Logprobs(_) => {}
            Event::Decided(decision) => {
                bar.finish_and_clear();
                decided = Some(decision);
            }
            Event::Token(token) => {
                tokens.push(token);
                let piece = decoder.push(token);
                if !arguments.json {
                    print!("{piece}");
                    std::io::stdout().flush()?;
                }
                text.push_str(&piece);
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Finished(finished) => {
                let decision = decided.context("the engine did not say how the prompt was computed")?;
                return Ok(Outcome {
                    tokens,
                    text: text + &decoder.finish(),
                    decision,
                    finished,
                });
            }
        }
    }
    anyhow::bail!("the engine ended without a result")
}

fn report(outcome: &Outcome, prompt_tokens: usize, as_json: bool) {
    let (timings, guesses) = (outcome.finished.timings, outcome.finished.guesses);
    if as_json {
        let summary = json!({
            "decision": outcome.decision.to_string(), "prompt_tokens": prompt_tokens, "completion_tokens": outcome.tokens.len(),
            "finish_reason": format!("{:?}", outcome.finished.reason).to_lowercase(), "text": outcome.text,
            "prefill_seconds": timings.prefill.as_secs_f64(), "handoff_tail_seconds": timings.handoff_tail.as_secs_f64(),
            "first_token_seconds": timings.first_token.as_secs_f64(), "decode_seconds": timings.decode.as_secs_f64(),
            "draft_tokens": guesses.tried, "draft_tokens_accepted": guesses.right,
        });
        println!("{summary}");
        return;
    }
    println!();
    let rate = outcome.tokens.len() as f64 / timings.decode.as_secs_f64().max(1e-9);
    eprintln!(
        "{prompt_tokens} prompt tokens, {}; first token after {:.2} s, {} tokens at {rate:.1}/s",
        outcome.decision,
        timings.first_token.as_secs_f64(),
        outcome.tokens.len(),
    );
    if guesses.tried > 0 {
        eprintln!("{} of {} guesses were right", guesses.right, guesses.tried);
    }
}
