//! Sessions that outlive the engine that made them.

use std::path::Path;
use std::sync::Arc;

use ds4_runtime::{Engine, EngineOptions, SessionStore};

use crate::support::{alone, engine, finished, prompt, request, stage, strict, unconnected, whole};

fn store(folder: &Path) -> Option<Arc<SessionStore>> {
    Some(Arc::new(
        SessionStore::open(folder, 1 << 30, whole().info()).unwrap(),
    ))
}

async fn ask(engine: &Arc<Engine>, prompt: &[u32]) -> (Vec<u32>, u32) {
    let (_, tokens, end) = finished(engine.generate(request(prompt.to_vec()))).await.unwrap();
    (tokens, end.cached_tokens)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().path())
        .collect()
}

/// A conversation of 400 tokens and more, saved by an engine that ends.
async fn saved(folder: &Path) -> Vec<u32> {
    let stage = stage(0, 1);
    let options = EngineOptions {
        store: store(folder),
        ..strict()
    };
    let engine = engine(2, &[&stage], options).await;
    let (answered, _) = ask(&engine, &prompt(400)).await;
    engine.shutdown().await;
    assert_eq!(files(folder).len(), 1);
    prompt(400).into_iter().chain(answered).chain([5, 6, 7]).collect()
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_session_saved_under_one_split_goes_on_under_any_other_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let next = saved(folder.path()).await;
    let expected = alone(&next).await;
    let options = || EngineOptions {
        store: store(folder.path()),
        ..strict()
    };
    let here = unconnected(0, &[], options());
    assert_eq!(ask(&here, &next).await, (expected.clone(), 415));
    let (first, second) = (stage(0, 0), stage(1, 1));
    let other = engine(2, &[&first, &second], options()).await;
    assert_eq!(ask(&other, &next).await, (expected, 415));
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_spoiled_file_is_never_used() {
    let folder = tempfile::tempdir().unwrap();
    let next = saved(folder.path()).await;
    let sound = std::fs::read(&files(folder.path())[0]).unwrap();
    let path = files(folder.path())[0].clone();
    let expected = alone(&next).await;
    let length = sound.len();
    for (at, cut) in [
        (9, length),
        (40, length),
        (length / 2, length),
        (length - 1, length),
        (0, length - 1),
        (0, 11),
        (0, 0),
    ] {
        let mut bytes = sound.clone();
        bytes.truncate(cut);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x41;
        }
        std::fs::write(&path, bytes).unwrap();
        let options = EngineOptions {
            store: store(folder.path()),
            ..EngineOptions::default()
        };
        let engine = unconnected(0, &[], options);
        assert_eq!(
            ask(&engine, &next).await,
            (expected.clone(), 0),
            "byte {at} of {cut}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_disk_that_takes_nothing_costs_only_the_saving() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        store: store(folder.path()),
        ..EngineOptions::default()
    };
    let engine = unconnected(0, &[], options);
    std::fs::remove_dir(folder.path()).unwrap();
    let before = failures();
    let (answered, _) = ask(&engine, &prompt(400)).await;
    assert_eq!(answered, alone(&prompt(400)).await);
    engine.shutdown().await;
    assert!(failures() > before, "counted");
}

fn failures() -> u64 {
    let reason = "write".into();
    let metrics = ds4_telemetry::metrics::Metrics::global();
    metrics
        .store_failures
        .get_or_create(&ds4_telemetry::metrics::ReasonLabel { reason })
        .get()
}
