//! A pass whose last tokens are a guess: taken back when the guess was wrong.
//!
//! Every row of a session belongs to one position or one group, and a later token overwrites none of them: going back is cutting rows off at the
//! end. All that it takes besides is that the rows which the earlier frontier still sees are not forgotten meanwhile. So nothing is copied.

use crate::{Kv, KvError, TokenHash};

/// Where a session goes back to when the guess was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trial {
    pub(crate) frontier: u64,
    hash: TokenHash,
}

impl Kv {
    /// The next pass begins with `certain`; what it computes after them may be taken back. [`Kv::keep_trial`] or [`Kv::undo_trial`] must follow it.
    pub fn begin_trial(&mut self, certain: &[u32]) {
        let mut hash = self.hash();
        hash.extend(certain);
        let frontier = self.frontier() + certain.len() as u64;
        self.trial = Some(Trial { frontier, hash });
    }

    /// The guess was right: the session is as if all its tokens had been certain.
    pub fn keep_trial(&mut self) {
        if self.trial.take().is_some() {
            let frontier = self.frontier();
            self.span().layers().for_each(|layer| self.trim(layer, frontier));
        }
    }

    /// The guess was wrong: the session is as if only the certain tokens had been computed.
    ///
    /// # Errors
    /// When rows of that frontier are not there: the pass was another back end's, which forgets them. The session is of no use then.
    pub fn undo_trial(&mut self) -> Result<(), KvError> {
        let Some(Trial { frontier, hash }) = self.trial.take() else {
            return Ok(());
        };
        let layout = self.layout().clone();
        for ((layer, kind), rows) in self.all_rows_mut() {
            let expected = layout.expected_rows(*layer, *kind, frontier);
            rows.truncate(expected.end);
            let found = rows.range();
            if found != expected && !(found.is_empty() && expected.is_empty()) {
                return Err(KvError::Rows {
                    layer: *layer,
                    kind: *kind,
                    frontier,
                    expected,
                    found,
                });
            }
        }
        self.stand_at(frontier, hash);
        Ok(())
    }
}
