//! The prefix cache: what was computed is not computed again, and nothing else is ever taken for it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_model::{Graph, ModelSlice, Numerics};
use ds4_runtime::{Engine, EngineOptions, SessionStore};
use ds4_synth::{Dims, Preset};
use proptest::prelude::*;

use crate::support::{LAYERS, finished, prompt, request, unconnected, whole};

async fn ask(engine: &Arc<Engine>, prompt: &[u32]) -> (Vec<u32>, u32) {
    let (_, tokens, end) = finished(engine.generate(request(prompt.to_vec()))).await.unwrap();
    (tokens, end.cached_tokens)
}

fn with_store(folder: &Path, slice: &Arc<dyn ModelSlice>) -> EngineOptions {
    let store = SessionStore::open(folder, 1 << 30, slice.info()).unwrap();
    EngineOptions {
        store: Some(Arc::new(store)),
        ..EngineOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_turn_of_a_long_conversation_computes_only_its_new_tokens_also_after_a_restart() {
    let (folder, long) = (tempfile::tempdir().unwrap(), 20_000);
    let first = prompt(long);
    let engine = unconnected(0, &[], with_store(folder.path(), &whole()));
    let (answered, cached) = ask(&engine, &first).await;
    assert_eq!(cached, 0);
    let second: Vec<u32> = first.iter().chain(&answered).copied().chain(prompt(40)).collect();
    let known = (first.len() + answered.len() - 1) as u32;
    // First from disk: in memory the next turn would change the session.
    engine.shutdown().await;
    let engine = unconnected(0, &[], with_store(folder.path(), &whole()));
    let restarted = ask(&engine, &second).await;
    assert_eq!(restarted.1, known, "of {} after a restart", second.len());
    let again: Vec<u32> = second
        .iter()
        .chain(&restarted.0)
        .copied()
        .chain([9, 8, 7])
        .collect();
    let third = ask(&engine, &again).await;
    assert_eq!(
        third.1 as usize,
        second.len() + restarted.0.len() - 1,
        "in memory"
    );
    let fresh = unconnected(0, &[], EngineOptions::default());
    assert_eq!(
        ask(&fresh, &again).await,
        (third.0, 0),
        "and the tokens are those of a fresh start"
    );
}

/// Another model of the same shape, and the same model in the other numerics.
fn others() -> Vec<Arc<dyn ModelSlice>> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtime-other.gguf");
    let dims = Dims {
        seed: 99,
        ..Dims::preset(Preset::Micro)
    };
    ds4_synth::write(&path, &dims, &mut |_, _| {}).unwrap();
    let load = |numerics| {
        let gguf = Gguf::open(&path).unwrap();
        let span = LayerSpan::full(LAYERS);
        let backend = Cpu::new(Some(1), None).unwrap();
        Arc::new(Graph::load(&gguf, span, numerics, backend, &mut |_, _| {}).unwrap()) as Arc<dyn ModelSlice>
    };
    vec![load(Numerics::Canonical), load(Numerics::Reference)]
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_another_model_or_other_numerics_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let first = prompt(400);
    let engine = unconnected(0, &[], with_store(folder.path(), &whole()));
    let (answered, _) = ask(&engine, &first).await;
    engine.shutdown().await;
    let next: Vec<u32> = first.iter().chain(&answered).copied().chain([5]).collect();
    for slice in others() {
        let all = LayerSpan::full(LAYERS);
        let engine = Engine::new(slice.clone(), all, Vec::new(), with_store(folder.path(), &slice));
        assert_eq!(ask(&engine, &next).await.1, 0);
    }
    let engine = unconnected(0, &[], with_store(folder.path(), &whole()));
    assert!(ask(&engine, &next).await.1 > 400, "it is still there for its own");
}

/// What a client may do to a conversation before it asks again.
#[derive(Clone, Debug)]
enum Edit {
    Append(Vec<u32>),
    Replace(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, u32),
    /// Back to an earlier one.
    Return(prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let (place, token) = (any::<prop::sample::Index>(), 3..250_u32);
    prop_oneof![
        3 => prop::collection::vec(token.clone(), 1..40).prop_map(Edit::Append),
        1 => (place.clone(), token.clone()).prop_map(|(at, token)| Edit::Replace(at, token)),
        1 => place.clone().prop_map(Edit::Cut),
        1 => (place.clone(), token).prop_map(|(at, token)| Edit::Insert(at, token)),
        2 => place.prop_map(Edit::Return),
    ]
}

fn apply(edit: &Edit, tokens: &mut Vec<u32>, history: &[Vec<u32>]) {
    match edit {
        Edit::Append(more) => tokens.extend(more),
        Edit::Replace(at, token) => {
            let at = at.index(tokens.len());
            tokens[at] = *token;
        }
        Edit::Cut(at) => tokens.truncate(at.index(tokens.len()).max(1)),
        Edit::Insert(at, token) => tokens.insert(at.index(tokens.len()), *token),
        Edit::Return(at) => tokens.clone_from(&history[at.index(history.len())]),
    }
}

/// Asks after every edit, of one engine that remembers and of one that begins anew.
async fn never_stale(start: Vec<u32>, edits: Vec<Edit>) -> Result<(), TestCaseError> {
    let engine = unconnected(0, &[], EngineOptions::default());
    let (mut tokens, mut history, mut known) = (start, Vec::new(), HashMap::new());
    for edit in std::iter::once(&Edit::Append(vec![4])).chain(&edits) {
        apply(edit, &mut tokens, &history);
        tokens.truncate(300);
        let (answered, cached) = ask(&engine, &tokens).await;
        let shared = history
            .iter()
            .map(|old: &Vec<u32>| old.iter().zip(&tokens).take_while(|(a, b)| a == b).count());
        prop_assert!(
            cached as usize <= shared.max().unwrap_or(0),
            "more than was ever computed"
        );
        if !known.contains_key(&tokens) {
            let fresh = unconnected(0, &[], EngineOptions::default());
            known.insert(tokens.clone(), ask(&fresh, &tokens).await.0);
        }
        prop_assert_eq!(
            &answered,
            &known[&tokens],
            "{} of {} cached",
            cached,
            tokens.len()
        );
        history.push(tokens.iter().chain(&answered).copied().collect());
        if matches!(edit, Edit::Append(_)) {
            // The usual turn: what was answered is part of the next prompt.
            tokens.extend(&answered);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn an_edited_conversation_never_gets_what_was_computed_for_another(
        start in prop::collection::vec(3..250_u32, 1..150), edits in prop::collection::vec(edit(), 1..7),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(never_stale(start, edits))?;
    }
}
