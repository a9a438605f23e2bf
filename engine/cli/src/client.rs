//! A client of a server: JSON requests over HTTP, answers as they come.

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A server by its address.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    base: String,
    key: Option<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Server {
    /// `url` as `http://HOST:PORT`, with or without `/v1`.
    pub(crate) fn new(url: &str, key: Option<String>) -> Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let uri: Uri = base.parse().with_context(|| format!("--url {url}"))?;
        ensure!(
            uri.scheme_str() == Some("http") && uri.host().is_some(),
            "--url: expected http://HOST:PORT, found {url:?}; for https put a proxy before it"
        );
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base, key, client })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request = request
            .header("content-type", "application/json")
            .header("x-ds4-progress", "1");
        let body = body.map(ToString::to_string).unwrap_or_default();
        let response = self.client.request(request.body(Full::from(body))?).await;
        response.with_context(|| {
            format!(
                "no answer from {}: is a server there? `ds4 serve --model FILE` starts one",
                self.base
            )
        })
    }

    /// The answer as JSON; a refusal is an error with the server's words.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let response = self.send(Method::GET, path, None).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}: {}", refusal(&body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// The one model that the server has.
    pub(crate) async fn model(&self) -> Result<String> {
        let models = self.get("/v1/models").await?;
        let model = models["data"][0]["id"].as_str().map(str::to_owned);
        model.with_context(|| format!("{} serves no model", self.base))
    }

    /// Asks for a stream.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<Stream> {
        let response = self.send(Method::POST, path, Some(body)).await?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", refusal(&body));
        }
        let header = response
            .headers()
            .get("x-ds4-disaggregation")
            .and_then(|value| value.to_str().ok());
        let decision = header.unwrap_or_default().to_owned();
        Ok(Stream {
            decision,
            body: response.into_body(),
            held: Vec::new(),
        })
    }
}

/// What the server says is wrong.
fn refusal(body: &[u8]) -> String {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let message = said
        .as_ref()
        .and_then(|said| said["error"]["message"].as_str().map(str::to_owned));
    message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

/// One line of a stream.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Line {
    Comment(String),
    Data(Value),
    /// `[DONE]`
    Done,
}

/// Server-sent events. Dropping it cancels the work at the server.
#[derive(Debug)]
pub(crate) struct Stream {
    /// How the prompt was computed, once it is known.
    pub(crate) decision: String,
    body: Incoming,
    held: Vec<u8>,
}

impl Stream {
    /// The next line that says something; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>> {
        loop {
            while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                if let Some(line) = read(String::from_utf8_lossy(&line).trim_end())? {
                    self.note(&line);
                    return Ok(Some(line));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.context("the stream broke")?.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn note(&mut self, line: &Line) {
        if let Line::Comment(text) = line
            && let Some(decision) = text.strip_prefix("x-ds4-disaggregation: ")
        {
            decision.clone_into(&mut self.decision);
        }
    }
}

/// A line of an event stream; an error inside of it is an error here.
fn read(line: &str) -> Result<Option<Line>> {
    if let Some(comment) = line.strip_prefix(':') {
        return Ok(Some(Line::Comment(comment.trim_start().to_owned())));
    }
    match line.strip_prefix("data: ") {
        None => Ok(None),
        Some("[DONE]") => Ok(Some(Line::Done)),
        Some(data) => {
            let value: Value = serde_json::from_str(data).with_context(|| format!("not an event: {data}"))?;
            if let Some(message) = value["error"]["message"].as_str() {
                bail!("{message}");
            }
            Ok(Some(Line::Data(value)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_errors_are_errors() {
        assert_eq!(
            read(": prefill 1/2").expect("sound"),
            Some(Line::Comment("prefill 1/2".into()))
        );
        assert_eq!(
            read("data: {\"a\":1}").expect("sound"),
            Some(Line::Data(serde_json::json!({"a": 1})))
        );
        assert_eq!(
            [
                read("data: [DONE]").expect("sound"),
                read("event: ping").expect("sound")
            ],
            [Some(Line::Done), None]
        );
        assert!(
            read("data: {\"error\": {\"message\": \"gone\"}}")
                .expect_err("said")
                .to_string()
                .contains("gone")
        );
        assert!(Server::new("https://x", None).is_err() && Server::new("http://h:1/v1/", None).is_ok());
    }
}
