//! Why a model was not fetched: what was expected, what was found, and what helps.

use std::path::PathBuf;
use std::time::Duration;

use ds4_gguf::GgufError;
use thiserror::Error;

/// A fetch that did not end well.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The source is no URL that can be fetched.
    #[error("source: expected https://HOST/FILE or hf://OWNER/NAME[@REVISION]/FILE, found {found:?}")]
    Source {
        /// The text given.
        found: String,
    },
    /// A flag or file that cannot be used.
    #[error("{name}: expected {expected}, found {found}")]
    Unexpected {
        /// Flag, header or file.
        name: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The server refused.
    #[error("{url}: status: expected 200 or 206, found {status}: {remedy}")]
    Status {
        /// What was asked for, without its query.
        url: String,
        /// HTTP status.
        status: u16,
        /// What would help.
        remedy: &'static str,
    },
    /// The connection failed, on every attempt.
    #[error(
        "{url}: {cause} ({attempts} attempts without a byte): check the address, DNS, proxy and egress rules"
    )]
    Connection {
        /// What was asked for, without its query.
        url: String,
        /// What went wrong last.
        cause: String,
        /// Attempts since the last byte came.
        attempts: u32,
    },
    /// The server sent another file than before.
    #[error(
        "{name}: expected {expected}, found {found}: the file changed at its source: pin a revision, then fetch again"
    )]
    Changed {
        /// `ETag` or `length`.
        name: &'static str,
        /// As at first.
        expected: String,
        /// As now.
        found: String,
    },
    /// What arrived is not what was announced.
    #[error(
        "sha256 of {what}: expected {expected}, found {found}: the source serves other bytes than those asked for"
    )]
    Digest {
        /// The file or one of its pieces.
        what: String,
        /// As pinned.
        expected: String,
        /// As computed.
        found: String,
    },
    /// The volume is too small.
    #[error(
        "free space in {path}: expected {expected} bytes, found {found}: enlarge the cache (spec.model.cache.size) or choose another folder"
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes still to be written.
        expected: u64,
        /// Bytes free.
        found: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}{}", remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes at the source are no usable model.
    #[error("the file at the source: {0}")]
    Gguf(#[from] GgufError),
    /// The layers asked for are not of this model.
    #[error(transparent)]
    Span(#[from] ds4_gguf::SpanError),
    /// The layers that a stage wants were not fetched.
    #[error(
        "{path}: layers {span}: expected all of their {expected} bytes, found {found}: run `ds4 fetch` with --layers {span}"
    )]
    Uncovered {
        /// The model.
        path: PathBuf,
        /// What is wanted.
        span: String,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that were fetched.
        found: u64,
    },
    /// One request failed; it may succeed when asked again.
    #[error("{cause}")]
    Transient {
        /// What went wrong.
        cause: String,
        /// How long the server asks to wait.
        after: Option<Duration>,
    },
}

/// What helps against an error of the operating system.
fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => {
            ": enlarge the cache (spec.model.cache.size) or choose another folder"
        }
        std::io::ErrorKind::PermissionDenied => {
            ": the folder must be writable by this user (a hostPath cache: chown it to 65532)"
        }
        std::io::ErrorKind::ReadOnlyFilesystem => ": mount the cache writable",
        _ => "",
    }
}

impl FetchError {
    pub(crate) fn unexpected(name: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Unexpected {
            name: name.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn transient(cause: impl ToString) -> Self {
        Self::Transient {
            cause: cause.to_string(),
            after: None,
        }
    }
}
