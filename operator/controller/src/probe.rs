//! Asks output pods what they know and the API server does not: whether their route is complete, and if not, why.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::build::HTTP_PORT;
use crate::observe::Member;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(1);
/// The readiness text is one line; more is not read.
const LONGEST: u64 = 4096;

/// What one output pod says about its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) pod: String,
    pub(crate) revision: String,
    pub(crate) route: Route,
}

/// The state of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Complete,
    /// The reason that the pod gives.
    Incomplete(String),
    /// The pod did not answer.
    Unknown,
    /// The pod has no address yet: nobody can be asked.
    NoAddress,
}

/// Asks all output pods that should answer, at once.
pub(crate) async fn routes(pods: &[Member]) -> Vec<Report> {
    let asked = pods
        .iter()
        .filter(|pod| pod.output && !pod.leaving)
        .map(|pod| async {
            let ip = pod.pod.status.as_ref().and_then(|status| status.pod_ip.clone());
            Report {
                pod: pod.name.clone(),
                revision: pod.revision.clone(),
                route: match ip {
                    Some(ip) => told(&ip).await,
                    None => Route::NoAddress,
                },
            }
        });
    join_all(asked).await
}

async fn told(ip: &str) -> Route {
    match tokio::time::timeout(PATIENCE, get(ip, HTTP_PORT, "/readyz")).await {
        Ok(Ok(answer)) => route(&answer),
        Ok(Err(_)) | Err(_) => Route::Unknown,
    }
}

/// An answer as it comes: head, empty line, body.
pub(crate) async fn get(ip: &str, port: u16, path: &str) -> std::io::Result<String> {
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let mut stream = TcpStream::connect(format!("{host}:{port}")).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Reads the pod's answer: `ready`, `degraded: WHY` or `not ready: WHY`.
fn route(answer: &str) -> Route {
    let Some((_, body)) = answer.split_once("\r\n\r\n") else {
        return Route::Unknown;
    };
    let body = body.trim();
    let why = body
        .strip_prefix("degraded: ")
        .or_else(|| body.strip_prefix("not ready: "));
    match why {
        Some(why) => Route::Incomplete(why.to_owned()),
        None if body == "ready" => Route::Complete,
        None => Route::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_own_words_are_read() {
        let of = |body: &str| route(&format!("HTTP/1.0 200 OK\r\ncontent-length: 6\r\n\r\n{body}\n"));
        assert_eq!(of("ready"), Route::Complete);
        assert_eq!(
            of("degraded: stage early: model: expected 1, found 2"),
            Route::Incomplete("stage early: model: expected 1, found 2".into())
        );
        assert_eq!(
            of("not ready: the route is connecting"),
            Route::Incomplete("the route is connecting".into())
        );
        assert_eq!(route("garbage"), Route::Unknown);
    }
}
