//! What clients do to connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ds4_server::App;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{MODEL, get, question, ready};

async fn served() -> (Arc<App>, SocketAddr) {
    let app = ready(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(ds4_server::serve(
        listener,
        Arc::clone(&app),
        std::future::pending(),
    ));
    (app, address)
}

/// What the server says until it closes, at most for some seconds.
async fn answer(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(text.as_bytes()).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_a_largest_size_and_a_longest_list() {
    let (_, address) = served().await;
    let many: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
    for header in [format!("large: {}\r\n", "x".repeat(100 << 10)), many] {
        let mut stream = send(
            address,
            &format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{header}\r\n"),
        )
        .await;
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 431"));
    }
    let mut stream = send(
        address,
        "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer(&mut stream).await.ends_with("ok\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_ends_the_work() {
    let (app, address) = served().await;
    let body =
        json!({"model": MODEL, "messages": question(), "stream": true, "ignore_eos": true}).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = send(address, &(head + &body)).await;
    let mut first = [0; 256];
    assert!(stream.read(&mut first).await.unwrap() > 0);
    drop(stream);
    for _ in 0..200 {
        let status: Value = get(&app, "/status").await.json();
        if status["running"].as_array().unwrap().is_empty() {
            let last = &status["ended"][0];
            assert_eq!(last["outcome"], "cancelled", "{status}");
            assert!(last["completion"].as_u64().unwrap() < 2900, "{status}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the work goes on without a client");
}

/// A request of which all was sent, or a part.
fn streamed(path: &str) -> String {
    let content = match path {
        "/v1/completions" => json!({"prompt": "a b", "max_tokens": 200}),
        "/v1/responses" => json!({"input": "a b", "max_output_tokens": 200}),
        _ => json!({"messages": question(), "max_tokens": 200}),
    };
    let mut body = content;
    body["model"] = MODEL.into();
    body["stream"] = true.into();
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_cut_their_requests_or_their_streams_anywhere_leave_nothing() {
    let (app, address) = served().await;
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    ] {
        let whole = streamed(path);
        for part in 0..12 {
            drop(send(address, &whole[..whole.len() * part / 12]).await);
        }
        for bytes in [1, 40, 300, 900, 1500, 2100] {
            let mut stream = send(address, &whole).await;
            let mut read = vec![0; bytes];
            // The stream may be shorter.
            let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut read)).await;
            drop(stream);
        }
    }
    for _ in 0..400 {
        let status: Value = get(&app, "/status").await.json();
        if status["running"].as_array().unwrap().is_empty() {
            let engine = app.loaded().unwrap().engine.status();
            if engine.requests == 0 {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("something runs without a client");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_description_are_there() {
    let app = ready(&["key"]);
    let page = get(&app, "/").await;
    assert!(
        page.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    assert!(page.headers.contains_key("content-security-policy"));
    assert_eq!(
        get(&app, "/status").await.status.as_u16(),
        401,
        "it tells of requests, so it needs a key"
    );
    assert_eq!(
        get(&app, "/openapi.json").await.json()["components"]["schemas"]["Model"]["enum"][0],
        MODEL
    );
}
