//! A file server over loopback that does what servers do: ranges or none, redirects, tokens, and every way of failing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;

/// What the next answers do instead of what they should.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A status.
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Drop(usize),
    /// One byte of the body is another.
    Flip,
    /// Another ETag, as if the file had been replaced.
    OtherEtag,
    /// The body never comes.
    Stall,
}

/// What the server is.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Answers ranges with the whole file.
    pub no_ranges: bool,
    /// Wants this bearer token.
    pub token: Option<String>,
    /// Sends clients to `/cdn/...` first, as the hub does, with these headers.
    pub hub: Option<Hub>,
    /// Waits before each part of 64 KiB.
    pub pace: Option<Duration>,
}

/// What the hub says.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    pub commit: String,
    pub sha256: String,
}

pub struct Shared {
    file: Bytes,
    rules: Rules,
    pub faults: Mutex<VecDeque<Fault>>,
    /// Bytes sent.
    pub sent: AtomicU64,
    /// Requests for the file's bytes, with their range.
    pub ranges: Mutex<Vec<Range<u64>>>,
    /// Paths with the token they came with.
    pub asked: Mutex<Vec<(String, Option<String>)>>,
}

pub struct Server {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(file: Vec<u8>, rules: Rules, faults: &[Fault]) -> Self {
        let shared = Arc::new(Shared {
            file: file.into(),
            rules,
            faults: Mutex::new(faults.iter().copied().collect()),
            sent: AtomicU64::new(0),
            ranges: Mutex::default(),
            asked: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self {
            address,
            shared,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/files/model.gguf", self.address)
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let field = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let token = field(header::AUTHORIZATION);
    shared
        .asked
        .lock()
        .expect("asked")
        .push((path.clone(), token.clone()));
    let stored = path.starts_with("/cdn/");
    if let Some(expected) = shared.rules.token.as_ref().filter(|_| !stored)
        && token != Some(format!("Bearer {expected}"))
    {
        return status(if token.is_some() { 403 } else { 401 });
    }
    if let Some(hub) = shared.rules.hub.as_ref().filter(|_| !stored) {
        // Another name of this host, so that it is another origin.
        let host = field(header::HOST)
            .unwrap_or_default()
            .replace("127.0.0.1", "localhost");
        return Response::builder()
            .status(302)
            .header(header::LOCATION, format!("http://{host}/cdn/blob?signature=1"))
            .header("x-repo-commit", &hub.commit)
            .header("x-linked-etag", format!("\"{}\"", hub.sha256))
            .body(Body::empty())
            .expect("a response");
    }
    if !path.ends_with("model.gguf") && !stored {
        return status(404);
    }
    let fault = shared.faults.lock().expect("faults").pop_front();
    if let Some(Fault::Status(code)) = fault {
        return status(code);
    }
    send(&shared, field(header::RANGE), fault)
}

fn status(code: u16) -> Response {
    Response::builder()
        .status(code)
        .body(Body::empty())
        .expect("a response")
}

fn send(shared: &Arc<Shared>, range: Option<String>, fault: Option<Fault>) -> Response {
    let total = shared.file.len() as u64;
    let range = range
        .filter(|_| !shared.rules.no_ranges)
        .map(|text| parsed(&text, total));
    let etag = if matches!(fault, Some(Fault::OtherEtag)) {
        "\"other\""
    } else {
        "\"first\""
    };
    let mut response = Response::builder().header(header::ETAG, etag);
    let span = range.clone().unwrap_or(0..total);
    shared.ranges.lock().expect("ranges").push(span.clone());
    response = response.header(header::CONTENT_LENGTH, span.end - span.start);
    if range.is_some() {
        response = response.status(StatusCode::PARTIAL_CONTENT).header(
            header::CONTENT_RANGE,
            format!("bytes {}-{}/{total}", span.start, span.end - 1),
        );
    }
    let mut bytes = shared.file
        [usize::try_from(span.start).expect("usize")..usize::try_from(span.end).expect("usize")]
        .to_vec();
    if matches!(fault, Some(Fault::Flip)) {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    response
        .body(body(Arc::clone(shared), bytes.into(), fault))
        .expect("a response")
}

fn parsed(text: &str, total: u64) -> Range<u64> {
    let (first, last) = text
        .trim_start_matches("bytes=")
        .split_once('-')
        .expect("a range");
    let last: u64 = last.parse().expect("an end");
    first.parse().expect("a start")..(last + 1).min(total)
}

fn body(shared: Arc<Shared>, bytes: Bytes, fault: Option<Fault>) -> Body {
    let end = match fault {
        Some(Fault::Drop(after)) => after.min(bytes.len()),
        Some(Fault::Stall) => 0,
        _ => bytes.len(),
    };
    let broken = end < bytes.len();
    let stalls = matches!(fault, Some(Fault::Stall));
    Body::from_stream(futures::stream::unfold(Some(0), move |at| {
        let (shared, bytes) = (Arc::clone(&shared), bytes.clone());
        async move {
            let at = at?;
            if stalls {
                std::future::pending::<()>().await;
            }
            if let Some(pace) = shared.rules.pace {
                tokio::time::sleep(pace).await;
            }
            if at == end {
                return broken.then(|| (Err(std::io::Error::other("dropped")), None));
            }
            let next = (at + (64 << 10)).min(end);
            shared.sent.fetch_add((next - at) as u64, Ordering::SeqCst);
            Some((Ok(bytes.slice(at..next)), Some(next)))
        }
    }))
}
