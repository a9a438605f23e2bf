//! The files of one model in a folder, and the order in which they change.
//!
//! `NAME` is there once some span of it is complete; until then the bytes are in `NAME.partial`. Each has its journal beside it. One process
//! at a time holds `NAME.lock`; a lock ends with its process, so a kill leaves none behind.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::FetchError;
use crate::journal::{self, Identity, Journal};

/// Journal of the file at `path`.
pub(crate) fn journal_of(path: &Path) -> PathBuf {
    with(path, "pieces")
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

/// The model's files, locked.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where the model is published.
    pub(crate) path: PathBuf,
    /// Held until the end.
    _lock: File,
}

/// A file that pieces go to.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Published or partial.
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) journal: Journal,
    /// Pieces of earlier runs, with their checksums.
    pub(crate) recorded: Vec<(usize, u32)>,
}

impl Target {
    /// Makes the folder and waits for the lock; `waits` is called when another process has it.
    pub(crate) fn lock(folder: &Path, name: &str, waits: &dyn Fn()) -> Result<Self, FetchError> {
        std::fs::create_dir_all(folder).map_err(FetchError::io(folder))?;
        let path = folder.join(name);
        let lock = with(&path, "lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(FetchError::io(&lock))?;
        if file.try_lock().is_err() {
            waits();
            file.lock().map_err(FetchError::io(&lock))?;
        }
        let target = Self { path, _lock: file };
        target.recover()?;
        Ok(target)
    }

    fn partial(&self) -> PathBuf {
        with(&self.path, "partial")
    }

    /// Ends a publication that was cut short between its two renames.
    fn recover(&self) -> Result<(), FetchError> {
        let (partial, journal) = (self.partial(), journal_of(&self.partial()));
        if journal.exists() && !partial.exists() && self.path.exists() {
            rename(&journal, &journal_of(&self.path))?;
        }
        Ok(())
    }

    /// The file to go on with: the published one or the partial one when it is of the same source, a new partial one otherwise.
    pub(crate) fn open(&self, identity: &Identity) -> Result<Opened, FetchError> {
        for path in [self.path.clone(), self.partial()] {
            let Some((found, recorded)) = journal::read(&journal_of(&path)) else {
                continue;
            };
            let length = std::fs::metadata(&path).map(|about| about.len()).ok();
            if found == *identity && length == Some(identity.length) {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .map_err(FetchError::io(&path))?;
                return Ok(Opened {
                    journal: Journal::append_to(&journal_of(&path))?,
                    path,
                    file,
                    recorded,
                });
            }
            tracing::info!(path = %path.display(), "another file than the source's: it is fetched anew");
        }
        self.start(identity)
    }

    fn start(&self, identity: &Identity) -> Result<Opened, FetchError> {
        let path = self.partial();
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(FetchError::io(&path))?;
        file.set_len(identity.length).map_err(FetchError::io(&path))?;
        let journal = Journal::create(&journal_of(&path), identity)?;
        Ok(Opened {
            path,
            file,
            journal,
            recorded: Vec::new(),
        })
    }

    /// Removes a file whose bytes were not what was asked for; whoever has it mapped keeps it.
    pub(crate) fn discard(opened: &Opened) {
        // The file first: without its journal it would pass for one that nobody fetched. The error that leads here is the one to report.
        let _ = std::fs::remove_file(&opened.path);
        let _ = std::fs::remove_file(journal_of(&opened.path));
    }

    /// Puts a file whose wanted pieces are complete where stages look for it. The bytes reach the disk first.
    pub(crate) fn publish(&self, opened: &Opened) -> Result<(), FetchError> {
        opened.file.sync_all().map_err(FetchError::io(&opened.path))?;
        if opened.path != self.path {
            rename(&opened.path, &self.path)?;
            rename(&journal_of(&opened.path), &journal_of(&self.path))?;
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(FetchError::io(folder))
    }
}

/// Refuses to begin what the volume cannot hold.
pub(crate) fn ensure_space(path: &Path, expected: u64) -> Result<(), FetchError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let about = rustix::fs::statvfs(folder).map_err(|error| FetchError::Io {
        path: folder.to_owned(),
        source: error.into(),
    })?;
    let found = about.f_bavail.saturating_mul(about.f_frsize);
    if found >= expected {
        Ok(())
    } else {
        Err(FetchError::Space {
            path: folder.to_owned(),
            expected,
            found,
        })
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), FetchError> {
    std::fs::rename(from, to).map_err(FetchError::io(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(etag: &str) -> Identity {
        Identity {
            source: "https://host/f".into(),
            length: 4,
            etag: Some(etag.into()),
            sha256: None,
        }
    }

    fn lock(folder: &Path) -> Target {
        Target::lock(folder, "f.gguf", &|| {}).expect("locked")
    }

    #[test]
    fn a_publication_cut_between_its_renames_is_finished_on_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = lock(folder.path());
        let mut opened = target.open(&identity("a")).expect("new");
        opened.journal.record(&[(0, 1)]).expect("recorded");
        std::fs::rename(&opened.path, &target.path).expect("the first rename, then a kill");
        drop(target);
        let again = lock(folder.path()).open(&identity("a")).expect("again");
        assert_eq!(
            (again.path, again.recorded),
            (folder.path().join("f.gguf"), vec![(0, 1)])
        );
    }

    #[test]
    fn another_version_of_the_file_goes_beside_the_published_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = lock(folder.path());
        let first = target.open(&identity("a")).expect("new");
        target.publish(&first).expect("published");
        let second = target.open(&identity("b")).expect("another");
        assert_eq!(second.path, folder.path().join("f.gguf.partial"));
        assert!(second.recorded.is_empty() && target.path.exists());
    }

    #[test]
    fn a_second_process_waits_for_the_lock() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = lock(folder.path());
        let path = folder.path().to_owned();
        let (sender, waits) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            Target::lock(&path, "f.gguf", &|| sender.send(()).expect("heard")).is_ok()
        });
        waits.recv().expect("the second waits");
        assert!(!other.is_finished());
        drop(first);
        assert!(other.join().expect("ended"));
    }

    #[test]
    fn a_volume_that_is_too_small_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = ensure_space(&folder.path().join("f"), u64::MAX).expect_err("too much");
        assert!(
            error.to_string().contains(&u64::MAX.to_string())
                && error.to_string().contains("spec.model.cache.size"),
            "{error}"
        );
    }
}
