//! Going back to an earlier frontier of the same session.
//!
//! Compressed and indexer rows are only ever appended, so a longer session still has those of a shorter one. What is lost on the way are
//! the window and the states; a checkpoint keeps them, a few megabytes whatever the length of the session.

use std::collections::BTreeMap;

use crate::kv::Rows;
use crate::{Kv, KvError, KvKind, TokenHash};

/// The rows of one frontier that later tokens overwrite.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    frontier: u64,
    hash: TokenHash,
    rows: BTreeMap<(usize, KvKind), Rows>,
}

impl Checkpoint {
    /// Tokens before it.
    #[must_use]
    pub const fn frontier(&self) -> u64 {
        self.frontier
    }

    /// Hash of those tokens.
    #[must_use]
    pub const fn hash(&self) -> TokenHash {
        self.hash
    }

    /// Bytes of the rows kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.values().map(|rows| rows.live().len() as u64).sum()
    }
}

impl Kv {
    /// Keeps what is needed to come back to this frontier.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let kept = self
            .all_rows()
            .iter()
            .filter(|((_, kind), _)| !kind.append_only());
        Checkpoint {
            frontier: self.frontier(),
            hash: self.hash(),
            rows: kept.map(|(key, rows)| (*key, rows.clone())).collect(),
        }
    }

    /// Goes back to `to`, which was made of this session or of a session that holds these layers among others.
    ///
    /// # Errors
    /// When this session has not reached that frontier, or the checkpoint lacks a layer; nothing was changed then.
    pub fn rewind(&mut self, to: &Checkpoint) -> Result<(), KvError> {
        let span = self.span();
        if self.frontier() < to.frontier {
            return Err(KvError::Mismatch {
                field: "frontier",
                expected: format!("at least {}", to.frontier),
                found: self.frontier().to_string(),
                span,
            });
        }
        let lacking = self
            .all_rows()
            .keys()
            .find(|(layer, kind)| !kind.append_only() && !to.rows.contains_key(&(*layer, *kind)));
        if let Some((layer, kind)) = lacking.copied() {
            return Err(KvError::Unknown { layer, kind, span });
        }
        let layout = self.layout().clone();
        for ((layer, kind), rows) in self.all_rows_mut() {
            match to.rows.get(&(*layer, *kind)) {
                Some(kept) => rows.clone_from(kept),
                None => rows.truncate(layout.expected_rows(*layer, *kind, to.frontier).end),
            }
        }
        self.stand_at(to.frontier, to.hash);
        Ok(())
    }
}
