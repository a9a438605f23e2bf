//! Where a file is, and what opens the door.

use std::path::Path;

use reqwest::Url;

use crate::FetchError;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A file that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is asked for.
    pub url: Url,
    /// Name of the file on disk.
    pub file: String,
    /// The commit that was asked for, when it is one: the hub's answer must name the same.
    pub commit: Option<String>,
}

impl Source {
    /// Reads `https://HOST/FILE`, `http://HOST/FILE`, or `hf://OWNER/NAME[@REVISION]/FILE`, whose hub is `endpoint`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str, endpoint: &str) -> Result<Self, FetchError> {
        match text.strip_prefix("hf://") {
            Some(path) => Self::hub(path, endpoint).ok_or_else(|| wrong(text)),
            None => Self::plain(text),
        }
    }

    fn plain(text: &str) -> Result<Self, FetchError> {
        let url = Url::parse(text).map_err(|_| wrong(text))?;
        let file = url
            .path_segments()
            .and_then(Iterator::last)
            .unwrap_or_default()
            .to_owned();
        if !matches!(url.scheme(), "http" | "https") || file.is_empty() {
            return Err(wrong(text));
        }
        Ok(Self {
            url,
            file,
            commit: None,
        })
    }

    fn hub(path: &str, endpoint: &str) -> Option<Self> {
        let (owner, rest) = path.split_once('/')?;
        let (name, file) = rest.split_once('/')?;
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let mut url = Url::parse(endpoint).ok()?;
        // Segments are escaped one by one; a revision such as `refs/pr/1` is one segment.
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend([owner, name, "resolve", revision])
            .extend(file.split('/'));
        let last = file.rsplit('/').next().unwrap_or_default();
        let empty = [owner, name, revision, last].iter().any(|part| part.is_empty());
        (!empty).then(|| Self {
            url,
            file: last.to_owned(),
            commit: is_commit(revision).then(|| revision.to_owned()),
        })
    }

    /// The URL as it may be shown: a query may hold a signature.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.url)
    }
}

/// A URL without user, password and query.
pub(crate) fn shown(url: &Url) -> String {
    format!(
        "{}://{}{}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        url.port().map_or_else(String::new, |port| format!(":{port}")),
        url.path()
    )
}

/// A commit names one tree for ever; a branch or tag does not.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn wrong(text: &str) -> FetchError {
    FetchError::Source {
        found: text.to_owned(),
    }
}

/// What requests carry.
#[derive(Clone, Default)]
pub struct Access {
    /// Sent as a bearer token, to the source's own host alone.
    pub token: Option<String>,
    /// Further certificate authorities, as PEM.
    pub authorities: Option<Vec<u8>>,
}

impl std::fmt::Debug for Access {
    /// Never the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("token", &self.token.is_some())
            .field("authorities", &self.authorities.is_some())
            .finish()
    }
}

impl Access {
    /// Reads token and authorities from files.
    ///
    /// # Errors
    /// When a file cannot be read or holds no token.
    pub fn read(token: Option<&Path>, authorities: Option<&Path>) -> Result<Self, FetchError> {
        let text = token
            .map(|path| std::fs::read_to_string(path).map_err(FetchError::io(path)))
            .transpose()?;
        let token = text.map(|text| text.trim().to_owned());
        if token.as_ref().is_some_and(String::is_empty) {
            return Err(FetchError::unexpected("--token-file", "a token", "an empty file"));
        }
        let authorities = authorities
            .map(|path| std::fs::read(path).map_err(FetchError::io(path)))
            .transpose()?;
        Ok(Self { token, authorities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_file_is_a_url_of_its_revision() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let source = Source::parse(
            &format!("hf://own/flash@{commit}/q2/flash.gguf"),
            DEFAULT_ENDPOINT,
        )
        .expect("a source");
        assert_eq!(
            source.url.as_str(),
            format!("https://huggingface.co/own/flash/resolve/{commit}/q2/flash.gguf")
        );
        assert_eq!(
            (source.file.as_str(), source.commit.as_deref()),
            ("flash.gguf", Some(commit))
        );
        let branch =
            Source::parse("hf://own/flash/flash.gguf", "http://127.0.0.1:9/mirror/").expect("a source");
        assert_eq!(
            (branch.url.as_str(), branch.commit),
            (
                "http://127.0.0.1:9/mirror/own/flash/resolve/main/flash.gguf",
                None
            )
        );
    }

    #[test]
    fn other_texts_are_refused_and_queries_are_not_shown() {
        for text in [
            "flash.gguf",
            "ftp://host/f",
            "https://host/",
            "hf://own/flash",
            "hf://own//f",
            "hf://own/flash@/f",
        ] {
            assert!(
                matches!(
                    Source::parse(text, DEFAULT_ENDPOINT),
                    Err(FetchError::Source { .. })
                ),
                "{text}"
            );
        }
        let signed = Source::parse(
            "https://me:secret@host:8443/f.gguf?signature=abc",
            DEFAULT_ENDPOINT,
        )
        .expect("a source");
        assert_eq!(
            (signed.shown().as_str(), signed.file.as_str()),
            ("https://host:8443/f.gguf", "f.gguf")
        );
    }

    #[test]
    fn a_token_is_never_printed() {
        let access = Access {
            token: Some("hf_secret".into()),
            authorities: None,
        };
        assert!(!format!("{access:?}").contains("secret"));
    }
}
