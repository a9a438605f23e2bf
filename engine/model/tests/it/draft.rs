//! The draft head, and guesses that are taken back.

use std::path::Path;

use ds4_gguf::tensors::DraftNames;
use ds4_gguf::{Gguf, LayerSpan, ModelConfig, Weights, tensors};
use ds4_kernels_cpu::Cpu;
use ds4_model::{Drafter, Graph, Hidden, Kv, ModelError, ModelSlice, Numerics};

use crate::support::{config, empty, graph, metadata, run, tokens, write, write_draft, write_tensors};

const ALL: LayerSpan = LayerSpan {
    first: 0,
    last: 3,
    head: false,
};
/// The layer that the head's is a copy of.
const LAST: LayerSpan = LayerSpan {
    first: 3,
    last: 3,
    head: false,
};

/// The model of `config` with the head of `head` beside it.
fn with_draft(numerics: Numerics, head: &ModelConfig) -> Result<(Graph<Cpu>, Gguf), ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let (model, draft) = (folder.path().join("model.gguf"), folder.path().join("draft.gguf"));
    write(&model, &config());
    write_draft(&draft, head);
    let (model, draft) = (Gguf::open(&model).unwrap(), Gguf::open(&draft).unwrap());
    let cpu = Cpu::new(Some(2), None).unwrap();
    let graph = Graph::load(&model, LayerSpan::full(4), numerics, cpu, &mut |_, _| {})?;
    graph
        .with_draft(&draft, &mut |_, _| {})
        .map(|graph| (graph, draft))
}

/// Streams as the model's last layer leaves them.
fn streams(slice: &dyn ModelSlice, tokens: &[u32]) -> Hidden {
    run(slice, tokens, 64, &mut [&mut empty(slice, ALL)])
}

/// The guesses after each of `steps` more pairs of a token and the streams before it.
fn guesses(drafter: &dyn Drafter, tokens: &[u32], before: &Hidden, steps: &[usize]) -> Vec<u32> {
    let (mut kv, mut at, width) = (drafter.empty(), 0, before.width());
    let step = |count: &usize| {
        let rows = before.as_slice()[at * width..(at + count) * width].to_vec();
        let hidden = Hidden::from_vec(width, rows).unwrap();
        let guess = drafter
            .draft(&mut kv, &tokens[at + 1..=at + count], &hidden)
            .unwrap();
        at += count;
        guess
    };
    steps.iter().map(step).collect()
}

fn numbers(weights: &Weights, name: &str) -> Vec<f32> {
    let bytes = weights.require(name).unwrap().data;
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// `x / rms(x) * weight`, in f64.
fn normalised(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (square + 1e-6).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, w)| f64::from(*x) * scale * f64::from(*w))
        .collect()
}

fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    let row = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
    matrix.chunks_exact(x.len()).map(row).collect()
}

#[test]
fn the_head_joins_a_token_with_the_streams_before_it_and_is_a_layer_of_the_model_then() {
    let (graph, file) = with_draft(Numerics::Reference, &config()).unwrap();
    let (all, n_embd) = (tokens(60), config().n_embd);
    let before = streams(&graph, &all);
    let head = Weights::map_draft(&file, &config(), &mut |_, _| {}).unwrap();
    let of = |name: &str| numbers(&head, &format!("mtp.0.{name}.weight"));
    let (e_norm, e_proj, h_norm, h_proj) = (of("enorm"), of("e_proj"), of("hnorm"), of("h_proj"));
    // Joined here in f64, the rest by the model's own last layer and head.
    let mut joined = Vec::new();
    for at in 0..all.len() - 1 {
        let embedded = graph.embed(&all[at + 1..=at + 1]).unwrap();
        let next = product(&e_proj, &normalised(&embedded.as_slice()[..n_embd], &e_norm));
        for stream in before.token(at).chunks_exact(n_embd) {
            let own = product(&h_proj, &normalised(stream, &h_norm));
            joined.extend(own.iter().zip(&next).map(|(own, next)| (own + next) as f32));
        }
    }
    let mut joined = Hidden::from_vec(before.width(), joined).unwrap();
    let mut kv = empty(&graph, LAST);
    graph.forward(&all[1..], &mut joined, &mut kv).unwrap();
    let expected: Vec<u32> = (0..all.len() - 1)
        .map(|at| {
            let logits = graph.logits(&joined, at).unwrap();
            let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(&b.1));
            best.unwrap().0
        })
        .collect();
    let found = guesses(graph.drafter().unwrap(), &all, &before, &[1; 59]);
    assert_eq!(found, expected);
    assert!(found.iter().collect::<std::collections::BTreeSet<_>>().len() > 20);
}

#[test]
fn guesses_do_not_depend_on_how_the_pairs_come() {
    let (graph, _) = with_draft(Numerics::Canonical, &config()).unwrap();
    let all = tokens(60);
    let (drafter, before) = (graph.drafter().unwrap(), streams(&graph, &all));
    let each = guesses(drafter, &all, &before, &[1; 59]);
    let ends = |steps: &[usize]| {
        let at = steps.iter().scan(0, |at, step| {
            *at += step;
            Some(each[*at - 1])
        });
        at.collect::<Vec<u32>>()
    };
    for steps in [vec![59], [2, 1].repeat(19), vec![17, 1, 40]] {
        assert_eq!(guesses(drafter, &all, &before, &steps), ends(&steps), "{steps:?}");
    }
    // What is before the window tells the head nothing, and only differences of positions matter to it.
    let late = 59 - drafter.window();
    let rest = before.as_slice()[late * before.width()..].to_vec();
    let rest = Hidden::from_vec(before.width(), rest).unwrap();
    assert_eq!(guesses(drafter, &all[late..], &rest, &[59 - late]), [each[58]]);
}

#[test]
fn a_model_computes_the_same_with_a_head_beside_it() {
    let (graph, _) = with_draft(Numerics::Canonical, &config()).unwrap();
    let plain = crate::support::graph(Numerics::Canonical);
    assert!(plain.drafter().is_none());
    let mut kvs = [empty(&graph, ALL), empty(&*plain, ALL)];
    let [one, other] = &mut kvs;
    let found = run(&graph, &tokens(40), 16, &mut [one]);
    assert_eq!(found, run(&*plain, &tokens(40), 16, &mut [other]));
    assert_eq!(kvs[0], kvs[1]);
}

/// A session after `tokens`, with the next ones, of which the last may be a guess.
fn pass(slice: &dyn ModelSlice, kv: &mut Kv, tokens: &[u32]) -> Hidden {
    let mut hidden = slice.embed(tokens).unwrap();
    slice.forward(tokens, &mut hidden, kv).unwrap();
    hidden
}

/// At every position over several groups of 4, the window of 9 and two groups of 128.
#[test]
fn a_guess_that_is_taken_back_leaves_no_trace_and_one_that_is_kept_is_as_any_token() {
    for numerics in [Numerics::Canonical, Numerics::Reference] {
        let slice = graph(numerics);
        let all = tokens(264);
        let mut plain = empty(&*slice, ALL);
        let mut tried = empty(&*slice, ALL);
        for at in 0..all.len() - 1 {
            let guess = (all[at + 1] + 1) % 96;
            tried.begin_trial(&all[at..=at]);
            let pair = pass(&*slice, &mut tried, &[all[at], guess]);
            let mut kept = tried.clone();
            tried.undo_trial().unwrap();
            let alone = pass(&*slice, &mut plain, &all[at..=at]);
            assert_eq!(pair.token(0), alone.token(0), "at {at}");
            assert_eq!(tried, plain, "after a wrong guess at {at}");
            // The rows that are there are those that a session of this length is known to hold.
            kept.keep_trial();
            let mut two = plain.clone();
            let second = pass(&*slice, &mut two, &[guess]);
            assert_eq!(pair.token(1), second.token(0), "at {at}");
            assert_eq!(kept, two, "after a right guess at {at}");
        }
    }
}

#[test]
fn a_pass_that_forgot_what_the_way_back_needs_is_noticed() {
    let slice = graph(Numerics::Canonical);
    let mut kv = empty(&*slice, ALL);
    run(&*slice, &tokens(20), 20, &mut [&mut kv]);
    let mut other = kv.clone();
    kv.begin_trial(&[5]);
    pass(&*slice, &mut other, &[5, 6]);
    // As a device does: only what is needed from the new frontier on.
    let mut rows = Vec::new();
    for layer in 0..4 {
        for kind in kv.layout().kinds(layer) {
            let missing = kv.missing(layer, *kind, 2);
            rows.push((
                layer,
                *kind,
                missing.start,
                other.read(layer, *kind, missing).unwrap().to_vec(),
            ));
        }
    }
    let new: Vec<_> = rows
        .iter()
        .map(|(layer, kind, first, bytes)| ds4_model::NewRows {
            layer: *layer,
            kind: *kind,
            first: *first,
            bytes,
        })
        .collect();
    kv.extend(&[5, 6], &new).unwrap();
    let error = kv.undo_trial().unwrap_err().to_string();
    assert!(
        error.contains("layer 0 window: expected rows 13..21 at frontier 21, found 14..21"),
        "{error}"
    );
}

#[test]
fn a_head_that_does_not_fit_is_refused_by_name() {
    let refusal = |head: &ModelConfig| with_draft(Numerics::Canonical, head).unwrap_err().to_string();
    let wide = ModelConfig {
        n_ff: 512,
        ..config()
    };
    assert_eq!(
        refusal(&wide),
        "tensor mtp.0.ffn_gate_exps.weight: expected shape [256, 256, 4], found [256, 512, 4]"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    for lost in ["h_proj.weight", "attn_sinks.weight", "hc_head_base.weight"] {
        let name = format!("mtp.0.{lost}");
        let mut wanted = tensors::draft(&config(), DraftNames::Mtp);
        wanted.retain(|tensor| tensor.name != name);
        write_tensors(file.path(), &wanted, &[]);
        let error =
            graph_of(LayerSpan::full(4)).with_draft(&Gguf::open(file.path()).unwrap(), &mut |_, _| {});
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("tensor {name}: expected it to be present")),
            "{error}"
        );
    }
    let mut wanted = tensors::draft(&config(), DraftNames::Mtp);
    wanted
        .iter_mut()
        .filter(|tensor| tensor.name == "mtp.0.norm.weight")
        .for_each(|tensor| tensor.dims = vec![128]);
    write_tensors(file.path(), &wanted, &[]);
    let error = graph_of(LayerSpan::full(4)).with_draft(&Gguf::open(file.path()).unwrap(), &mut |_, _| {});
    assert_eq!(
        error.unwrap_err().to_string(),
        "tensor mtp.0.norm.weight: expected shape [256], found [128]"
    );
}

fn graph_of(span: LayerSpan) -> Graph<Cpu> {
    crate::support::load(span, Numerics::Canonical)
}

#[test]
fn a_part_of_the_model_drafts_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write_draft(file.path(), &config());
    let head = Gguf::open(file.path()).unwrap();
    let part = LayerSpan {
        first: 1,
        ..LayerSpan::full(4)
    };
    let error = graph_of(part)
        .with_draft(&head, &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "layers 0:output (the draft head needs the whole model): expected them within 1:output of this slice"
    );
    let (graph, _) = with_draft(Numerics::Canonical, &config()).unwrap();
    let drafter = graph.drafter().unwrap();
    let hidden = streams(&graph, &tokens(2));
    for wrong in [&[3, 96][..], &[3], &[]] {
        assert!(
            drafter.draft(&mut drafter.empty(), wrong, &hidden).is_err(),
            "{wrong:?}"
        );
    }
}

/// The model's file as llama.cpp has it: the head's layer is counted as a block of the model, which it is not.
fn write_as_block(path: &Path, left_out: &[&str], more: &[&str]) {
    let blocks = ModelConfig {
        n_layer: 5,
        ratios: vec![4, 128, 4, 0, 0],
        clamp: vec![3.0; 5],
        ..config()
    };
    let mut pairs = metadata(&blocks);
    let (key, number, one) = ("deepseek4.nextn_predict_layers", 4_u32, 1_u32);
    let length = key.len() as u64;
    pairs.push(
        [
            &length.to_le_bytes()[..],
            key.as_bytes(),
            &number.to_le_bytes(),
            &one.to_le_bytes(),
        ]
        .concat(),
    );
    let mut wanted = tensors::expected(&config(), LayerSpan::full(4));
    wanted.extend(tensors::draft(&config(), DraftNames::Block(4)));
    wanted.retain(|tensor| !left_out.iter().any(|part| tensor.name.contains(part)));
    wanted.extend(more.iter().map(|name| tensors::Expected {
        name: (*name).into(),
        dims: vec![256, 96],
        formats: &[],
        optional: false,
    }));
    write_tensors(path, &wanted, &pairs);
}

#[test]
fn a_head_among_the_blocks_is_no_layer_of_the_model_and_guesses_as_one_of_its_own() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let all = tokens(60);
    let (own, _) = with_draft(Numerics::Reference, &config()).unwrap();
    let before = streams(&own, &all);
    let expected = guesses(own.drafter().unwrap(), &all, &before, &[1; 59]);
    // Without a norm of its own it takes the model's, of which that one is a copy here.
    for left_out in [&[][..], &["shared_head_norm"]] {
        write_as_block(file.path(), left_out, &[]);
        let gguf = Gguf::open(file.path()).unwrap();
        let found = ModelConfig::from_gguf(&gguf).unwrap();
        assert_eq!((found.n_layer, found.ratios.len(), found.clamp.len()), (4, 4, 4));
        let cpu = Cpu::new(Some(2), None).unwrap();
        let graph = Graph::load(
            &gguf,
            LayerSpan::full(4),
            Numerics::Reference,
            cpu,
            &mut |_, _| {},
        )
        .unwrap();
        assert_eq!(streams(&graph, &all), before);
        let graph = graph.with_draft(&gguf, &mut |_, _| {}).unwrap();
        assert_eq!(
            guesses(graph.drafter().unwrap(), &all, &before, &[1; 59]),
            expected
        );
    }
    write_as_block(file.path(), &["nextn"], &[]);
    let found = ModelConfig::from_gguf(&Gguf::open(file.path()).unwrap()).unwrap();
    assert_eq!(found.n_layer, 5, "what is no head is a layer");
    let table = "blk.4.nextn.embed_tokens.weight";
    write_as_block(file.path(), &[], &[table]);
    let gguf = Gguf::open(file.path()).unwrap();
    let error = tensors::check_draft(&gguf, &config()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("tensor {table}: expected none, since the model's own is used, found a tensor")
    );
    write_as_block(file.path(), &["nextn.hnorm"], &[]);
    let error = tensors::check_draft(&Gguf::open(file.path()).unwrap(), &config())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("tensor blk.4.nextn.hnorm.weight: expected it to be present"),
        "{error}"
    );
}
