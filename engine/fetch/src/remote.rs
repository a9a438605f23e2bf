//! One file behind a URL: what it is, and byte ranges of it.

use std::error::Error;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};
use reqwest::{Certificate, Client, Response, Url};

use crate::journal::Identity;
use crate::source::shown;
use crate::{Access, FetchError, Source};

/// The hub answers with one redirect to its storage; some mirrors with two.
const MOST_REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(10);
/// Commit of the tree that a revision means, set by the hub.
const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
/// Content name of a large file, set by the hub: its SHA-256.
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");

/// A file behind a URL.
pub(crate) struct Remote {
    client: Client,
    source: Source,
    token: Option<String>,
    /// Where redirects led; asked directly until it refuses.
    resolved: Mutex<Option<Url>>,
}

/// What the first answer says.
pub(crate) struct Opening {
    pub(crate) identity: Identity,
    /// Whether byte ranges can be asked for.
    pub(crate) ranges: bool,
    response: Response,
}

impl Opening {
    /// Bytes of the first answer.
    pub(crate) fn body(self) -> impl Stream<Item = Result<Bytes, FetchError>> {
        body(self.response)
    }
}

/// What the hub says on the way.
#[derive(Default)]
struct Hub {
    commit: Option<String>,
    sha256: Option<String>,
}

impl Hub {
    fn read(&mut self, headers: &HeaderMap) {
        self.commit = text(headers, &COMMIT).or(self.commit.take());
        let digest = text(headers, &LINKED_ETAG).map(|etag| etag.trim_matches('"').to_owned());
        self.sha256 = digest.filter(|digest| is_sha256(digest)).or(self.sha256.take());
    }
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Remote {
    pub(crate) fn new(source: &Source, access: &Access, stall: Duration) -> Result<Self, FetchError> {
        // Another part of the process may have chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let broken =
            |error: reqwest::Error| FetchError::unexpected("--ca-file", "certificates in PEM", chain(&error));
        let mut builder = Client::builder()
            .user_agent(concat!("ds4/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(stall)
            .tls_certs_merge(authorities(access.authorities.as_deref()).map_err(broken)?);
        if source
            .url
            .host_str()
            .is_some_and(|host| host == "localhost" || host.starts_with("127."))
        {
            builder = builder.no_proxy();
        }
        Ok(Self {
            client: builder.build().map_err(broken)?,
            source: source.clone(),
            token: access.token.clone(),
            resolved: Mutex::new(None),
        })
    }

    /// Asks for the first `start` bytes, and so learns what there is.
    pub(crate) async fn open(&self, start: u64) -> Result<Opening, FetchError> {
        let (response, hub) = self.send(&(0..start)).await?;
        if let (Some(expected), Some(found)) = (&self.source.commit, &hub.commit)
            && expected != found
        {
            return Err(FetchError::unexpected("revision", expected, found));
        }
        let ranges = response.status() == StatusCode::PARTIAL_CONTENT;
        let length = if ranges {
            total(response.headers())
        } else {
            response.content_length()
        };
        let length =
            length.ok_or_else(|| FetchError::unexpected("Content-Length", "the file's length", "none"))?;
        let identity = Identity {
            source: self.source.shown(),
            length,
            etag: strong_etag(response.headers()),
            sha256: hub.sha256,
        };
        Ok(Opening {
            identity,
            ranges,
            response,
        })
    }

    /// The bytes of `range`; an answer that is of another file than `identity`, or of another range, is refused.
    pub(crate) async fn range(
        &self,
        identity: &Identity,
        range: &Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, FetchError>> + use<>, FetchError> {
        let (response, _) = self.send(range).await?;
        let headers = response.headers();
        let changed = |name, expected: String, found: String| FetchError::Changed {
            name,
            expected,
            found,
        };
        if let (Some(expected), Some(found)) = (&identity.etag, strong_etag(headers))
            && *expected != found
        {
            return Err(changed("ETag", expected.clone(), found));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(FetchError::transient(
                "a range was asked for and the whole file came",
            ));
        }
        let found = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
        if let Some(length) = total(headers).filter(|length| *length != identity.length) {
            return Err(changed("length", identity.length.to_string(), length.to_string()));
        }
        let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, identity.length);
        if found != expected {
            return Err(FetchError::transient(format!(
                "Content-Range: expected {expected}, found {found}"
            )));
        }
        Ok(body(response))
    }

    async fn send(&self, range: &Range<u64>) -> Result<(Response, Hub), FetchError> {
        let known = self.resolved().clone();
        let mut url = known.clone().unwrap_or_else(|| self.source.url.clone());
        let mut hub = Hub::default();
        for _ in 0..MOST_REDIRECTS {
            let response = self
                .request(&url, range)
                .send()
                .await
                .map_err(|error| FetchError::transient(chain(&error)))?;
            hub.read(response.headers());
            if response.status().is_redirection() {
                url = location(&url, response.headers())?;
                continue;
            }
            if let Err(error) = accept(&url, &response) {
                // A signed address expires: the next attempt asks the source again.
                let expired = self.resolved().take().is_some() && response.status().is_client_error();
                return Err(if expired {
                    FetchError::transient(error)
                } else {
                    error
                });
            }
            if url != self.source.url {
                *self.resolved() = Some(url);
            }
            return Ok((response, hub));
        }
        Err(FetchError::unexpected(
            self.source.shown(),
            format!("at most {MOST_REDIRECTS} redirects"),
            "more",
        ))
    }

    fn request(&self, url: &Url, range: &Range<u64>) -> reqwest::RequestBuilder {
        let request = self
            .client
            .get(url.clone())
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        match &self.token {
            Some(token) if url.origin() == self.source.url.origin() => request.bearer_auth(token),
            _ => request,
        }
    }

    fn resolved(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.resolved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The URL as it may be shown.
    pub(crate) fn shown(&self) -> String {
        self.source.shown()
    }
}

/// The bundled roots of Mozilla, since small images have none, and those that the user gives; the system's come by themselves.
fn authorities(own: Option<&[u8]>) -> reqwest::Result<Vec<Certificate>> {
    let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|certificate| Certificate::from_der(certificate));
    let mut all = bundled.collect::<reqwest::Result<Vec<_>>>()?;
    if let Some(own) = own {
        all.extend(Certificate::from_pem_bundle(own)?);
    }
    Ok(all)
}

fn body(response: Response) -> impl Stream<Item = Result<Bytes, FetchError>> {
    response
        .bytes_stream()
        .map_err(|error| FetchError::transient(chain(&error)))
}

fn accept(url: &Url, response: &Response) -> Result<(), FetchError> {
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(());
    }
    if status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        )
    {
        let after = text(response.headers(), &header::RETRY_AFTER)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs);
        return Err(FetchError::Transient {
            cause: format!("status {}", status.as_u16()),
            after,
        });
    }
    let remedy = match status.as_u16() {
        401 => {
            "the source wants a token: give HF_TOKEN, --token-file or spec.model.source.huggingFace.tokenSecretRef"
        }
        403 => {
            "the token may not read this file: accept the model's terms with its account, or use another token"
        }
        404 => {
            "no such file: check repository, revision and file name (a private repository without a token looks the same)"
        }
        416 => "the file is empty",
        _ => "the source does not give this file",
    };
    Err(FetchError::Status {
        url: shown(url),
        status: status.as_u16(),
        remedy,
    })
}

fn location(url: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
    let found = text(headers, &header::LOCATION).unwrap_or_default();
    let next = url
        .join(&found)
        .ok()
        .filter(|next| matches!(next.scheme(), "http" | "https"));
    let next = next.ok_or_else(|| FetchError::unexpected("Location", "a URL", &found))?;
    if url.scheme() == "https" && next.scheme() == "http" {
        return Err(FetchError::unexpected(
            "Location",
            "https, as the source",
            shown(&next),
        ));
    }
    Ok(next)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// A weak name may be shared by different bytes.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    text(headers, &header::ETAG).filter(|etag| !etag.starts_with("W/"))
}

/// The length after the slash of `Content-Range`.
fn total(headers: &HeaderMap) -> Option<u64> {
    text(headers, &header::CONTENT_RANGE)?
        .rsplit('/')
        .next()?
        .parse()
        .ok()
}

/// An error and its causes: a connection's reason hides three levels down.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    if causes.is_empty() {
        error.to_string()
    } else {
        causes.join(": ")
    }
}
