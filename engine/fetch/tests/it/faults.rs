//! Lines that break, servers that lie, files that change.

use ds4_fetch::{Access, FetchError, Manifest, Verified};

use crate::server::{Fault, Rules, Server};
use crate::support::{assert_span, fetch, fetch_with, model, options, span};

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_refused_requests_are_asked_again_from_where_they_were() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let faults = [
        Fault::Status(503),
        Fault::Drop(1000),
        Fault::Drop(300_000),
        Fault::Stall,
        Fault::Status(429),
    ];
    let server = Server::start(bytes.clone(), Rules::default(), &faults).await;
    let mut options = options(folder.path(), "0:output");
    options.retries = 5;
    let (fetched, progress) = fetch_with(&server.url(), &Access::default(), &options).await;
    assert_eq!(
        std::fs::read(fetched.expect("fetched").path).expect("read"),
        bytes
    );
    assert!(progress.retries >= 4, "{progress:?}");
    assert_eq!(
        (progress.loaded_bytes, progress.total_bytes),
        (bytes.len() as u64, bytes.len() as u64)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_ends_with_the_cause_and_what_arrived_stays() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let right = Fault::Drop(usize::MAX);
    let mut faults = vec![right, right, Fault::Drop(700_000)];
    faults.extend([Fault::Status(502); 64]);
    let server = Server::start(bytes.clone(), Rules::default(), &faults).await;
    let mut options = options(folder.path(), "0:output");
    options.parallel = 1;
    let error = fetch(&server.url(), &options).await.expect_err("given up");
    assert!(
        matches!(&error, FetchError::Connection { attempts: 3, cause, .. } if cause.contains("502")),
        "{error}"
    );
    assert!(
        !folder.path().join("model.gguf").exists(),
        "nothing is published before it is complete"
    );
    server.shared.faults.lock().expect("faults").clear();
    server.shared.ranges.lock().expect("ranges").clear();
    fetch(&server.url(), &options).await.expect("the line is mended");
    let asked = server.shared.ranges.lock().expect("ranges").clone();
    let (opening, rest) = asked.split_first().expect("requests");
    assert!(
        opening.start == 0 && rest.iter().all(|range| range.start > 400_000),
        "what arrived is not fetched again: {asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_under_way_is_refused_and_a_new_one_is_fetched_anew() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(
        bytes.clone(),
        Rules::default(),
        &[Fault::Drop(usize::MAX), Fault::Drop(usize::MAX), Fault::OtherEtag],
    )
    .await;
    let error = fetch(&server.url(), &options(folder.path(), "0:output"))
        .await
        .expect_err("changed")
        .to_string();
    assert!(
        error.contains("ETag") && error.contains("\"first\"") && error.contains("\"other\""),
        "{error}"
    );
    let fetched = fetch(&server.url(), &options(folder.path(), "0:output"))
        .await
        .expect("stable again");
    assert_eq!(std::fs::read(fetched.path).expect("read"), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_manifest_a_part_is_verified_and_a_wrong_byte_is_found() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let original = folder.path().join("original.gguf");
    std::fs::write(&original, &bytes).expect("written");
    let manifest = Manifest::of(&original, &mut |_, _| {}).expect("hashed");
    let manifest = Manifest::parse(&serde_json::to_vec(&manifest).expect("text")).expect("read back");
    let mut options = options(folder.path(), "0:1");
    options.manifest = Some(manifest.clone());
    // Opening, header, then one wrong answer: the line's fault.
    let right = Fault::Drop(usize::MAX);
    let server = Server::start(bytes.clone(), Rules::default(), &[right, right, Fault::Flip]).await;
    let fetched = fetch(&server.url(), &options).await.expect("asked again");
    assert_eq!(fetched.verified, Verified::Pieces);
    assert_span(&fetched.path, &bytes, span(0, 1));
    // A source whose bytes are others: found, and named.
    let mut other = bytes.clone();
    let last = other.len() - 100;
    other[last] ^= 1;
    let liar = Server::start(other, Rules::default(), &[]).await;
    options.layers = "0:output".into();
    let error = fetch(&liar.url(), &options).await.expect_err("other bytes");
    assert!(
        matches!(&error, FetchError::Digest { what, .. } if what.starts_with("piece ")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_file_is_no_model() {
    let (mut bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    bytes.truncate(bytes.len() - 4096);
    let server = Server::start(bytes, Rules::default(), &[]).await;
    let error = fetch(&server.url(), &options(folder.path(), "0:0"))
        .await
        .expect_err("short")
        .to_string();
    assert!(error.contains("truncated"), "{error}");
}
