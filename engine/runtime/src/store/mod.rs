//! Sessions on disk: what the output pod's memory let go, and what outlives the process.

pub(crate) mod file;
mod index;

use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ds4_model::{CompleteKv, SliceInfo, TokenHash};
use ds4_telemetry::metrics::{Metrics, ReasonLabel};

pub(crate) use self::file::Owner;
pub use self::file::SessionFileError;
use self::index::{Entry, Index};

/// Shorter sessions are computed faster than they are worth a file.
pub(crate) const LEAST_TOKENS: usize = 256;
const EXTENSION: &str = "ds4session";
const UNFINISHED: &str = "unfinished";

/// A folder of sessions of one model.
#[derive(Debug)]
pub struct SessionStore {
    folder: PathBuf,
    owner: Owner,
    index: Mutex<Index>,
}

impl SessionStore {
    /// Finds the sessions in `folder`, which is made when it is not there, and keeps at most `budget` bytes in it. Files of other models stay
    /// and are not used.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, budget: u64, info: &SliceInfo) -> Result<Self, SessionFileError> {
        fs::create_dir_all(folder)?;
        let owner = Owner {
            fingerprint: info.fingerprint.to_string(),
            layout: info.layout.clone(),
        };
        let store = Self {
            folder: folder.to_owned(),
            owner,
            index: Mutex::new(Index::new(budget)),
        };
        for path in fs::read_dir(folder)?.filter_map(|item| item.ok().map(|item| item.path())) {
            store.found(&path);
        }
        Ok(store)
    }

    fn found(&self, path: &Path) {
        match path.extension().and_then(|extension| extension.to_str()) {
            // Its writer ended in the middle.
            Some(UNFINISHED) => drop(fs::remove_file(path)),
            Some(EXTENSION) => match self.entry(path) {
                Ok(entry) => self.index().add(entry),
                Err(error) => tracing::warn!(path = %path.display(), %error, "no session of this model"),
            },
            _ => {}
        }
    }

    fn entry(&self, path: &Path) -> Result<Entry, SessionFileError> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        let header = file::read_header(&mut BufReader::new(file), about.len(), &self.owner)?;
        Ok(Entry {
            path: path.to_owned(),
            frontier: header.tokens.len(),
            hash: TokenHash::from_value(header.token_hash),
            bytes: about.len(),
            hits: 0,
            used: about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest session that `prompt` continues, when it is longer than `shared`. Blocks.
    pub(crate) fn load(&self, prompt: &[u32], shared: usize) -> Option<(Vec<u32>, CompleteKv)> {
        let path = self.index().find(prompt, shared, SystemTime::now())?;
        match self.read(&path) {
            Ok((tokens, kv)) if prompt.starts_with(&tokens) => Some((tokens, kv)),
            // Equal hashes of unequal tokens.
            Ok(_) => None,
            Err(error) => {
                failed("read", &path, &error);
                self.index().remove(&path);
                drop(fs::remove_file(&path));
                None
            }
        }
    }

    fn read(&self, path: &Path) -> Result<(Vec<u32>, CompleteKv), SessionFileError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        // Marks it as used for those who come after this process.
        drop(file.set_modified(SystemTime::now()));
        file::read(BufReader::new(file), length, &self.owner)
    }

    /// Writes a session; those of least value go when the budget is full. A failure is counted and logged: the session is only slower to come
    /// back. Blocks.
    pub(crate) fn save(&self, tokens: &[u32], kv: &CompleteKv) {
        if tokens.len() < LEAST_TOKENS {
            return;
        }
        let hash = kv.kv().hash();
        let path = self.folder.join(format!("{hash}-{}.{EXTENSION}", tokens.len()));
        if self.index().knows(&path) {
            return;
        }
        let written = self.write(&path, tokens, kv);
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => return failed("write", &path, &error),
        };
        let entry = Entry {
            path,
            frontier: tokens.len(),
            hash,
            bytes,
            hits: 0,
            used: SystemTime::now(),
        };
        for gone in self.index().insert(entry, tokens) {
            drop(fs::remove_file(gone));
        }
    }

    /// Under another name first: a file with the right name is whole.
    fn write(&self, path: &Path, tokens: &[u32], kv: &CompleteKv) -> Result<u64, SessionFileError> {
        let unfinished = path.with_extension(UNFINISHED);
        let result = (|| {
            let file = File::create(&unfinished)?;
            file::write(BufWriter::with_capacity(1 << 20, &file), &self.owner, tokens, kv)?;
            file.sync_all()?;
            fs::rename(&unfinished, path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(file.metadata()?.len())
        })();
        if result.is_err() {
            drop(fs::remove_file(&unfinished));
        }
        result
    }
}

fn failed(what: &'static str, path: &Path, error: &SessionFileError) {
    tracing::warn!(path = %path.display(), %error, "session store: {what} failed");
    let reason = what.into();
    Metrics::global()
        .store_failures
        .get_or_create(&ReasonLabel { reason })
        .inc();
}
