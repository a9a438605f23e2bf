//! `ds4 inspect`.

use anyhow::{Context, Result};
use ds4_gguf::tensors::DraftNames;
use ds4_gguf::{LayerSpan, ModelConfig, tensors};
use ds4_model::Numerics;
use ds4_model::plan::Sizes;
use ds4_plan::{Machine, PlanError, Share, split};
use serde_json::{Value, json};

use crate::args::InspectArguments;
use crate::load::{self, Model};
use crate::sizes::human;

pub(crate) fn run(arguments: &InspectArguments) -> Result<()> {
    let model = load::open(&arguments.model)?;
    let sizes = Sizes::of(&model.gguf, &model.config, Numerics::Canonical)
        .with_context(|| arguments.model.display().to_string())?;
    let machines: Vec<Machine> = arguments.memory.iter().map(|bytes| Machine::of(*bytes)).collect();
    let proposal =
        (!machines.is_empty()).then(|| split(&sizes.parts(&model.config, arguments.context), &machines));
    if arguments.json {
        println!(
            "{}",
            as_json(&model, &sizes, arguments.context, proposal.as_ref())?
        );
    } else {
        print(&model, &sizes, arguments.context)?;
        print_proposal(proposal.as_ref(), &model, &sizes, arguments.context);
    }
    if let Some(Err(error)) = proposal {
        return Err(error.into());
    }
    Ok(())
}

fn print(model: &Model, sizes: &Sizes, context: u64) -> Result<()> {
    let c = &model.config;
    println!("{}", c.name);
    println!(
        "  file            {} in {} tensors",
        human(model.gguf.length()),
        model.gguf.tensors().len()
    );
    println!("  fingerprint     {}", model.gguf.fingerprint()?);
    println!(
        "  architecture    deepseek4: {} layers, width {}, {} residual streams, vocabulary {}",
        c.n_layer, c.n_embd, c.hc.streams, c.n_vocab
    );
    println!(
        "  attention       {} heads of {}, {} rotated, window {}, query rank {}, {} output groups of rank {}",
        c.n_head, c.head_dim, c.n_rot, c.window, c.q_lora, c.o_groups, c.o_lora
    );
    println!(
        "  indexer         {} heads of {}, best {} rows",
        c.indexer.heads, c.indexer.dim, c.indexer.top_k
    );
    println!(
        "  experts         {} of {}, width {}, {} layers routed by hash",
        c.n_used, c.n_expert, c.n_ff, c.n_hash
    );
    println!("  context         {} tokens", c.context_length);
    println!();
    println!("  layer  ratio  routing    weights  KV at {context} tokens");
    for (layer, bytes) in sizes.layers.iter().enumerate() {
        let routing = if layer < c.n_hash { "hash" } else { "scores" };
        let kv = human(sizes.layout.bytes(layer..layer + 1, context));
        println!(
            "  {layer:>5}  {:>5}  {routing:<7} {:>10}  {kv:>10}",
            ratio(c, layer),
            human(*bytes)
        );
    }
    println!("  embedding              {:>10}", human(sizes.embedding));
    println!("  head                   {:>10}", human(sizes.head));
    if let Some(bytes) = draft_bytes(model)? {
        println!("  draft head (--mtp)     {:>10}", human(bytes));
    }
    println!();
    let all = 0..c.n_layer;
    println!(
        "  KV              {:.1} bytes per further token; {} at {context} tokens",
        sizes.layout.bytes_per_token(all.clone()),
        human(sizes.layout.bytes(all, context))
    );
    Ok(())
}

/// Bytes of the draft head; none where the file has none, an error where it has a part of one or another model's.
fn draft_bytes(model: &Model) -> Result<Option<u64>> {
    let names = DraftNames::of(&model.gguf, &model.config);
    let prefix = format!("{}.", names.prefix());
    let mut all = model.gguf.tensors().iter();
    if !all.any(|tensor| tensor.name.starts_with(&prefix)) {
        return Ok(None);
    }
    let head = tensors::check_draft(&model.gguf, &model.config)?;
    Ok(Some(head.iter().map(|tensor| tensor.bytes).sum()))
}

fn ratio(config: &ModelConfig, layer: usize) -> String {
    match config.ratios[layer] {
        0 => "-".into(),
        ratio => ratio.to_string(),
    }
}

fn print_proposal(
    proposal: Option<&Result<Vec<Share>, PlanError>>,
    model: &Model,
    sizes: &Sizes,
    context: u64,
) {
    match proposal {
        None => {
            let whole = sizes.resident(LayerSpan::full(model.config.n_layer), context);
            println!(
                "  memory          {} to decode; ask for splits with --memory SIZE,SIZE (the last machine decodes)",
                human(whole)
            );
        }
        Some(Ok(shares)) => {
            println!("  split           machine     layers     needed of");
            for (i, share) in shares.iter().enumerate() {
                println!(
                    "                  {:>7}  {:>9}  {:>9}  {}",
                    i + 1,
                    share.span.to_string(),
                    human(share.needed),
                    human(share.memory)
                );
            }
        }
        // The error itself ends the command.
        Some(Err(_)) => {}
    }
}

fn as_json(
    model: &Model,
    sizes: &Sizes,
    context: u64,
    proposal: Option<&Result<Vec<Share>, PlanError>>,
) -> Result<Value> {
    let c = &model.config;
    let layer = |(i, bytes): (usize, &u64)| {
        json!({"layer": i, "ratio": c.ratios[i], "hash_routed": i < c.n_hash, "weight_bytes": bytes,
               "kv_bytes": sizes.layout.bytes(i..i + 1, context)})
    };
    let share = |share: &Share| json!({"layers": share.span.to_string(), "needed_bytes": share.needed, "memory_bytes": share.memory});
    let shares = proposal
        .and_then(|proposal| proposal.as_ref().ok())
        .map(|shares| shares.iter().map(share).collect::<Vec<_>>());
    Ok(json!({
        "name": c.name, "architecture": "deepseek4", "file_bytes": model.gguf.length(), "fingerprint": model.gguf.fingerprint()?.to_string(),
        "layers": sizes.layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
        "embedding_bytes": sizes.embedding, "head_bytes": sizes.head, "draft_head_bytes": draft_bytes(model)?,
        "n_layer": c.n_layer, "n_embd": c.n_embd, "n_vocab": c.n_vocab, "n_head": c.n_head, "head_dim": c.head_dim,
        "n_rot": c.n_rot, "q_lora": c.q_lora, "o_lora": c.o_lora, "o_groups": c.o_groups,
        "n_expert": c.n_expert, "n_used": c.n_used, "n_ff": c.n_ff, "n_hash": c.n_hash,
        "indexer_heads": c.indexer.heads, "indexer_dim": c.indexer.dim, "indexer_top_k": c.indexer.top_k,
        "window": c.window, "context_length": c.context_length,
        "kv_bytes_per_token": sizes.layout.bytes_per_token(0..c.n_layer), "kv_context_tokens": context,
        "activation_bytes_per_token": c.hidden_width() * size_of::<f32>(),
        "kv_bytes": sizes.layout.bytes(0..c.n_layer, context), "split": shares,
    }))
}
