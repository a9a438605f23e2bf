//! Defects that tests plant to see whether they would be found, and what a test sees of the protocol from within. Nothing of it is in a build
//! that serves.

/// A check that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// Token hashes are taken from the sender and not compared.
    HashUnchecked,
    /// Rows count as a session's as soon as they are all there; the commit is not waited for.
    PublishedEarly,
    /// Calls of an older attempt are taken.
    StaleEpoch,
}

#[cfg(not(test))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(not(test))]
pub(crate) const fn committed(_: u64) {}

#[cfg(not(test))]
pub(crate) const fn joined(_: u64, _: usize) {}

#[cfg(test)]
pub(crate) use watched::{committed, is, joined, plant, violations};

#[cfg(test)]
mod watched {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::Bug;

    #[derive(Default)]
    struct Audit {
        /// Shards committed, by epoch: one engine's epochs are all different.
        committed: BTreeMap<u64, usize>,
        violations: Vec<String>,
    }

    // A simulation lives on one thread; others beside it must not see its defect.
    thread_local! {
        static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
        static AUDIT: RefCell<Audit> = RefCell::default();
    }

    /// Plants a defect in what runs on this thread, or none, and forgets what was seen before.
    pub(crate) fn plant(bug: Option<Bug>) {
        BUG.set(bug);
        AUDIT.take();
    }

    pub(crate) fn is(bug: Bug) -> bool {
        BUG.get() == Some(bug)
    }

    /// A shard was checked against its commit.
    pub(crate) fn committed(epoch: u64) {
        AUDIT.with_borrow_mut(|audit| *audit.committed.entry(epoch).or_default() += 1);
    }

    /// An attempt's shards were put together.
    pub(crate) fn joined(epoch: u64, shards: usize) {
        AUDIT.with_borrow_mut(|audit| {
            let committed = audit.committed.get(&epoch).copied().unwrap_or(0);
            if committed != shards {
                let text =
                    format!("epoch {epoch}: {shards} shards were put together, {committed} were committed");
                audit.violations.push(text);
            }
        });
    }

    /// What must not have happened on this thread since [`plant`].
    pub(crate) fn violations() -> Vec<String> {
        AUDIT.with_borrow_mut(|audit| std::mem::take(&mut audit.violations))
    }
}
