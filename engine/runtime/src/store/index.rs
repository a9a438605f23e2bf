//! Which sessions lie on disk and which of them are worth their bytes. Pure.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ds4_model::TokenHash;

/// A hit counts half after this time.
const HALF_LIFE: Duration = Duration::from_secs(6 * 3600);

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) frontier: usize,
    pub(super) hash: TokenHash,
    pub(super) bytes: u64,
    pub(super) hits: u32,
    pub(super) used: SystemTime,
}

impl Entry {
    /// Tokens saved per byte, times how often that happens.
    #[allow(clippy::cast_precision_loss)] // an order among files
    fn value(&self, now: SystemTime) -> f64 {
        let age = now.duration_since(self.used).unwrap_or_default();
        let fresh = (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        (f64::from(self.hits) + 1.0) * fresh * self.frontier as f64 / self.bytes.max(1) as f64
    }
}

#[derive(Debug)]
pub(super) struct Index {
    budget: u64,
    entries: Vec<Entry>,
}

impl Index {
    pub(super) const fn new(budget: u64) -> Self {
        Self {
            budget,
            entries: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(super) fn knows(&self, path: &Path) -> bool {
        self.entries.iter().any(|entry| entry.path == path)
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.entries.retain(|entry| entry.path != path);
    }

    /// The longest entry that holds a beginning of `prompt`, longer than `shared` and shorter than all of it. Counts as a hit.
    pub(super) fn find(&mut self, prompt: &[u32], shared: usize, now: SystemTime) -> Option<PathBuf> {
        let fits = |entry: &&mut Entry| {
            (shared + 1..prompt.len()).contains(&entry.frontier)
                && TokenHash::of(&prompt[..entry.frontier]) == entry.hash
        };
        let best = self
            .entries
            .iter_mut()
            .filter(fits)
            .max_by_key(|entry| entry.frontier)?;
        best.hits += 1;
        best.used = now;
        Some(best.path.clone())
    }

    /// Adds the session of `tokens`; returns the files that have to go: beginnings of it that nobody asked for, and those of least value when
    /// the budget is full.
    pub(super) fn insert(&mut self, entry: Entry, tokens: &[u32]) -> Vec<PathBuf> {
        let now = entry.used;
        let superseded = |old: &Entry| {
            old.hits == 0 && old.frontier < tokens.len() && TokenHash::of(&tokens[..old.frontier]) == old.hash
        };
        let (old, kept) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition::<Vec<_>, _>(superseded);
        self.entries = kept;
        let mut gone: Vec<PathBuf> = old.into_iter().map(|old| old.path).collect();
        self.entries.push(entry);
        self.entries.sort_by(|a, b| a.value(now).total_cmp(&b.value(now)));
        while self.bytes() > self.budget && !self.entries.is_empty() {
            gone.push(self.entries.remove(0).path);
        }
        gone
    }

    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tokens: &[u32], bytes: u64, hits: u32, age: u64) -> Entry {
        Entry {
            path: format!("{}-{}", TokenHash::of(tokens), tokens.len()).into(),
            frontier: tokens.len(),
            hash: TokenHash::of(tokens),
            bytes,
            hits,
            used: now() - Duration::from_secs(age),
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[test]
    fn the_longest_beginning_of_a_prompt_is_found() {
        let mut index = Index::new(1000);
        let prompt: Vec<u32> = (0..20).collect();
        for length in [4, 9, 20] {
            index.add(entry(&prompt[..length], 10, 0, 0));
        }
        index.add(entry(&[7; 12], 10, 0, 0));
        let path = |length: usize| entry(&prompt[..length], 0, 0, 0).path;
        assert_eq!(
            index.find(&prompt, 0, now()),
            Some(path(9)),
            "20 leaves nothing to compute"
        );
        assert_eq!(index.find(&prompt, 9, now()), None, "memory holds as much");
        assert_eq!(index.find(&prompt[..9], 0, now()), Some(path(4)));
    }

    #[test]
    fn what_is_worth_least_goes_first() {
        let mut index = Index::new(100);
        let (old, asked, large) = (
            entry(&[1; 10], 30, 0, 86_400),
            entry(&[2; 10], 30, 3, 3600),
            entry(&[3; 10], 35, 0, 60),
        );
        for entry in [&old, &asked, &large] {
            index.add(entry.clone());
        }
        let new = entry(&[4; 10], 30, 0, 0);
        assert_eq!(index.insert(new, &[4; 10]), [old.path]);
        let huge = entry(&[5; 10], 101, 0, 0);
        assert!(
            index.insert(huge.clone(), &[5; 10]).contains(&huge.path),
            "larger than the budget"
        );
    }

    #[test]
    fn a_session_replaces_its_own_beginnings_unless_others_used_them() {
        let mut index = Index::new(1000);
        let tokens: Vec<u32> = (0..20).collect();
        let (own, shared) = (entry(&tokens[..15], 10, 0, 0), entry(&tokens[..5], 10, 1, 0));
        index.add(own.clone());
        index.add(shared);
        assert_eq!(index.insert(entry(&tokens, 10, 0, 0), &tokens), [own.path]);
    }
}
