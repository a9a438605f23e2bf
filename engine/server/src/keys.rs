//! Who may ask, and how often.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use http::{HeaderMap, header};

use crate::error::ApiError;

/// What one key may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Requests in a minute; none: as many as there is room for.
    pub requests_per_minute: Option<u32>,
}

/// The keys and what is left of their limits.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    keys: Vec<Key>,
    limits: Limits,
}

#[derive(Debug)]
struct Key {
    text: String,
    bucket: Mutex<Bucket>,
}

/// Fills at an even rate up to a minute's worth.
#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Keys {
    pub(crate) fn new(keys: &[String], limits: Limits) -> Self {
        let left = limits.requests_per_minute.map_or(0.0, f64::from);
        let key = |text: &String| Key {
            text: text.clone(),
            bucket: Mutex::new(Bucket {
                left,
                filled: Instant::now(),
            }),
        };
        Self {
            keys: keys.iter().map(key).collect(),
            limits,
        }
    }

    /// Whether this request may be answered.
    pub(crate) fn admit(&self, headers: &HeaderMap, now: Instant) -> Result<(), ApiError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let given = given(headers).unwrap_or_default();
        // All are looked at, so that time does not tell which one was nearly right.
        let found = self.keys.iter().fold(None, |found, key| {
            if same(key.text.as_bytes(), given.as_bytes()) {
                Some(key)
            } else {
                found
            }
        });
        let key = found.ok_or_else(ApiError::unauthorized)?;
        let Some(most) = self.limits.requests_per_minute else {
            return Ok(());
        };
        let mut bucket = key.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(f64::from(most), now).map_err(|seconds| {
            ApiError::rate_limited(
                format!("this key may send {most} requests in a minute; the next one in {seconds} s"),
                seconds,
            )
        })
    }
}

impl Bucket {
    /// Takes one, or says in how many seconds there is one.
    fn take(&mut self, most: f64, now: Instant) -> Result<(), u64> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * most / 60.0).min(most);
        self.filled = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - self.left) * 60.0 / most;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most a minute
        let whole = seconds.ceil() as u64;
        Err(whole.max(1))
    }
}

/// As OpenAI's clients send it, or as Anthropic's do.
pub(crate) fn given(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// Compares without stopping at the first difference, so that time does not tell how much was right.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
}

/// Reads keys: one a line from a file, or every file of a folder, as a mounted Secret is.
///
/// # Errors
/// When something cannot be read, or there is no key: an empty file must not open the server to everyone.
pub fn read_keys(path: &Path) -> std::io::Result<Vec<String>> {
    let mut texts = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            let file = entry?.path();
            // Kubernetes keeps earlier versions of a Secret in hidden folders beside the files.
            let hidden = file
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if file.is_file() && !hidden {
                texts.push(std::fs::read_to_string(file)?);
            }
        }
    } else {
        texts.push(std::fs::read_to_string(path)?);
    }
    let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim);
    let keys: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        let message = format!("{}: expected at least one key, found none", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            value.parse().expect("a value"),
        )])
    }

    #[test]
    fn keys_come_in_either_header_and_wrong_ones_are_refused() {
        let keys = Keys::new(&["one".into(), "two".into()], Limits::default());
        let now = Instant::now();
        for good in [
            headers("authorization", "Bearer one"),
            headers("x-api-key", "two"),
        ] {
            assert_eq!(keys.admit(&good, now), Ok(()));
        }
        for bad in [
            HeaderMap::new(),
            headers("authorization", "one"),
            headers("x-api-key", "tw"),
            headers("x-api-key", ""),
        ] {
            assert_eq!(keys.admit(&bad, now).expect_err("refused").status, 401);
        }
        assert_eq!(Keys::default().admit(&HeaderMap::new(), now), Ok(()));
    }

    #[test]
    fn a_key_has_its_own_limit_that_fills_again() {
        let limits = Limits {
            requests_per_minute: Some(2),
        };
        let keys = Keys::new(&["one".into(), "two".into()], limits);
        let (one, two, start) = (
            headers("x-api-key", "one"),
            headers("x-api-key", "two"),
            Instant::now(),
        );
        assert_eq!(
            [keys.admit(&one, start), keys.admit(&one, start)],
            [Ok(()), Ok(())]
        );
        let refused = keys.admit(&one, start).expect_err("too many");
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(30)));
        assert_eq!(keys.admit(&two, start), Ok(()));
        assert_eq!(keys.admit(&one, start + Duration::from_secs(30)), Ok(()));
    }

    #[test]
    fn keys_are_read_from_files_and_secrets() {
        let folder = std::env::temp_dir().join(format!("ds4-keys-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(folder.join("..data")).expect("a folder");
        std::fs::write(folder.join("a"), "# comment\n k1 \n\nk2\n").expect("written");
        std::fs::write(folder.join("..old"), "k3").expect("written");
        assert_eq!(read_keys(&folder.join("a")).expect("keys"), ["k1", "k2"]);
        assert_eq!(read_keys(&folder).expect("keys"), ["k1", "k2"]);
        std::fs::write(folder.join("a"), "\n").expect("written");
        assert!(
            read_keys(&folder)
                .expect_err("none")
                .to_string()
                .contains("at least one key")
        );
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
