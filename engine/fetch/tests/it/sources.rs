//! Sources: ranges and none, the hub with its redirect, tokens, what is refused and how.

use ds4_fetch::{Access, Source, Verified};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};

use crate::server::{Fault, Hub, Rules, Server};
use crate::support::{assert_span, fetch, fetch_with, model, options, sha256, span};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_takes_its_layers_and_the_file_is_the_same_model() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(bytes.clone(), Rules::default(), &[]).await;
    let fetched = fetch(&server.url(), &options(folder.path(), "1:1"))
        .await
        .expect("fetched");
    assert_eq!(
        (fetched.length, &fetched.verified),
        (bytes.len() as u64, &Verified::Transport)
    );
    // The micro model's tensors are small, so their starts and what lies between are most of it.
    assert!(fetched.bytes * 10 < fetched.length * 9, "{fetched:?}");
    assert_span(&fetched.path, &bytes, span(1, 1));
    let original = folder.path().join("original.gguf");
    std::fs::write(&original, &bytes).expect("written");
    let fingerprint = |path| {
        Gguf::open(path)
            .and_then(|gguf| gguf.fingerprint())
            .expect("a fingerprint")
            .to_string()
    };
    assert_eq!(fingerprint(&fetched.path), fingerprint(&original));
    // What was not fetched is refused, with what to do; never computed with zeros.
    let gguf = Gguf::open(&fetched.path).expect("a model");
    let config = ModelConfig::from_gguf(&gguf).expect("a config");
    let error = ds4_fetch::ensure_covers(&gguf, &config, span(0, 1))
        .expect_err("layer 0 is not here")
        .to_string();
    assert!(
        error.contains("layers 0:1") && error.contains("--layers 0:1"),
        "{error}"
    );
    assert!(ds4_fetch::ensure_covers(&gguf, &config, LayerSpan::full(3)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_stage_takes_the_whole_file_and_its_digest_is_compared() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(bytes.clone(), Rules::default(), &[]).await;
    let mut options = options(folder.path(), "2:output");
    options.sha256 = Some(sha256(&bytes));
    let fetched = fetch(&server.url(), &options).await.expect("fetched");
    assert_eq!(fetched.verified, Verified::Sha256(sha256(&bytes)));
    assert_eq!(std::fs::read(&fetched.path).expect("read"), bytes);
    options.sha256 = Some("0".repeat(64));
    let error = fetch(&server.url(), &options)
        .await
        .expect_err("another digest")
        .to_string();
    assert!(
        error.contains(&"0".repeat(64)) && error.contains(&sha256(&bytes)),
        "{error}"
    );
    assert!(
        !fetched.path.exists(),
        "bytes that are not what was asked for are not left to be served"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_gives_the_whole_file() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let rules = Rules {
        no_ranges: true,
        ..Rules::default()
    };
    let server = Server::start(bytes.clone(), rules, &[Fault::Drop(100_000), Fault::Status(503)]).await;
    let (fetched, progress) =
        fetch_with(&server.url(), &Access::default(), &options(folder.path(), "0:0")).await;
    let fetched = fetched.expect("fetched");
    assert_eq!((fetched.bytes, progress.retries), (bytes.len() as u64, 2));
    assert_eq!(std::fs::read(&fetched.path).expect("read"), bytes);
    assert_span(&fetched.path, &bytes, LayerSpan::full(3));
    let written = |path| {
        std::fs::metadata(path)
            .and_then(|about| about.modified())
            .expect("a time")
    };
    let before = written(&fetched.path);
    fetch(&server.url(), &options(folder.path(), "0:0"))
        .await
        .expect("here already");
    assert_eq!(
        written(&fetched.path),
        before,
        "a file that is whole is not written again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_digest_is_compared_and_its_token_stays_with_the_hub() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let hub = Hub {
        commit: COMMIT.into(),
        sha256: sha256(&bytes),
    };
    let rules = Rules {
        token: Some("hf_secret".into()),
        hub: Some(hub),
        ..Rules::default()
    };
    let server = Server::start(bytes.clone(), rules, &[]).await;
    let endpoint = format!("http://{}", server.address);
    let source =
        Source::parse(&format!("hf://own/flash@{COMMIT}/q2/model.gguf"), &endpoint).expect("a source");
    let access = Access {
        token: Some("hf_secret".into()),
        authorities: None,
    };
    let progress = ds4_fetch::Progress::default();
    let fetched = ds4_fetch::fetch(&source, &access, &options(folder.path(), "0:output"), &progress)
        .await
        .expect("fetched");
    assert_eq!(fetched.verified, Verified::Sha256(sha256(&bytes)));
    let asked = server.shared.asked.lock().expect("asked").clone();
    assert!(
        asked
            .iter()
            .all(|(path, token)| path.starts_with("/cdn/") == token.is_none()),
        "{asked:?}"
    );
    assert_eq!(
        asked
            .iter()
            .filter(|(path, _)| !path.starts_with("/cdn/"))
            .count(),
        1,
        "the resolved address is kept"
    );
    // A pinned commit that is here asks nobody.
    drop(server);
    ds4_fetch::fetch(&source, &access, &options(folder.path(), "0:output"), &progress)
        .await
        .expect("from the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_answers_with_another_commit_is_refused() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let hub = Hub {
        commit: "f".repeat(40),
        sha256: sha256(&bytes),
    };
    let server = Server::start(
        bytes,
        Rules {
            hub: Some(hub),
            ..Rules::default()
        },
        &[],
    )
    .await;
    let source = Source::parse(
        &format!("hf://own/flash@{COMMIT}/model.gguf"),
        &format!("http://{}", server.address),
    )
    .expect("a source");
    let error = ds4_fetch::fetch(
        &source,
        &Access::default(),
        &options(folder.path(), "0:0"),
        &ds4_fetch::Progress::default(),
    )
    .await
    .expect_err("refused")
    .to_string();
    assert!(
        error.contains("revision") && error.contains(COMMIT) && error.contains(&"f".repeat(40)),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_helps_and_are_not_asked_again() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let rules = Rules {
        token: Some("right".into()),
        ..Rules::default()
    };
    let server = Server::start(bytes, rules, &[]).await;
    let wrong = Access {
        token: Some("wrong".into()),
        authorities: None,
    };
    let right = Access {
        token: Some("right".into()),
        authorities: None,
    };
    let missing = server.url().replace("model.gguf", "none.gguf");
    for (url, access, expected) in [
        (server.url(), Access::default(), ["401", "HF_TOKEN"]),
        (server.url(), wrong, ["403", "terms"]),
        (missing, right, ["404", "file name"]),
    ] {
        let (fetched, progress) = fetch_with(&url, &access, &options(folder.path(), "0:0")).await;
        let error = fetched.expect_err("refused").to_string();
        assert!(
            expected.iter().all(|part| error.contains(part)) && progress.retries == 0,
            "{error}"
        );
    }
    let page = Server::start(
        b"<!DOCTYPE html> not a model at all".to_vec(),
        Rules::default(),
        &[],
    )
    .await;
    let error = fetch(&page.url(), &options(folder.path(), "0:0"))
        .await
        .expect_err("no model")
        .to_string();
    assert!(error.contains("GGUF") && error.contains("<!DO"), "{error}");
    let error = fetch(
        &page.url().replace("http://", "https://"),
        &options(folder.path(), "0:0"),
    )
    .await
    .expect_err("no TLS")
    .to_string();
    assert!(error.contains("3 attempts"), "{error}");
}
