//! What is here is not fetched twice, by whomever it was fetched.

use std::os::unix::fs::FileExt;

use crate::server::{Rules, Server};
use crate::support::{assert_span, fetch, model, options, sha256, span};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_span_adds_its_bytes_to_the_same_file() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(bytes.clone(), Rules::default(), &[]).await;
    let first = fetch(&server.url(), &options(folder.path(), "0:0"))
        .await
        .expect("fetched");
    let sent = server.sent();
    let again = fetch(&server.url(), &options(folder.path(), "0:0"))
        .await
        .expect("here already");
    let opening = (1 << 20).min(bytes.len() as u64);
    assert!(
        server.sent() - sent <= opening && again.bytes == first.bytes,
        "only the opening request is sent"
    );
    fetch(&server.url(), &options(folder.path(), "1:1"))
        .await
        .expect("added");
    assert_span(&first.path, &bytes, span(0, 1));
    fetch(&server.url(), &options(folder.path(), "2:output"))
        .await
        .expect("completed");
    assert_eq!(std::fs::read(&first.path).expect("read"), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_of_one_file_at_once_cooperate() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(bytes.clone(), Rules::default(), &[]).await;
    let (url, whole) = (server.url(), options(folder.path(), "0:output"));
    let one = |options| {
        let url = url.clone();
        tokio::spawn(async move { fetch(&url, &options).await })
    };
    let all = [
        one(whole.clone()),
        one(whole.clone()),
        one(options(folder.path(), "1:1")),
    ];
    for task in all {
        assert!(task.await.expect("ended").is_ok());
    }
    let openings = 3 * (1 << 20);
    assert!(
        server.sent() <= bytes.len() as u64 + 2 * openings,
        "each byte once, besides openings and headers: {}",
        server.sent()
    );
    assert_eq!(
        std::fs::read(folder.path().join("model.gguf")).expect("read"),
        bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_rotted_on_disk_is_fetched_again() {
    let (bytes, folder) = (model(), tempfile::tempdir().expect("a folder"));
    let server = Server::start(bytes.clone(), Rules::default(), &[]).await;
    let mut options = options(folder.path(), "0:output");
    options.sha256 = Some(sha256(&bytes));
    let path = fetch(&server.url(), &options).await.expect("fetched").path;
    let at = bytes.len() as u64 / 2;
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&[bytes[bytes.len() / 2] ^ 0xff], at)
        .expect("rotted");
    server.shared.ranges.lock().expect("ranges").clear();
    fetch(&server.url(), &options).await.expect("mended");
    assert_eq!(std::fs::read(&path).expect("read"), bytes);
    let asked = server.shared.ranges.lock().expect("ranges").clone();
    assert!(asked.iter().any(|range| range.contains(&at)), "{asked:?}");
    let mended: u64 = asked
        .iter()
        .filter(|range| range.start > 0)
        .map(|range| range.end - range.start)
        .sum();
    assert!(mended < bytes.len() as u64 / 2, "only its piece: {asked:?}");
}
