//! Memory of frames that went out, filled again: fresh memory costs a fault for every page, and is in no cache.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers that nobody reads any more, the last one used first. Never more than were on the way at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    /// An empty buffer; a new one has room for `most` bytes.
    pub(crate) fn take(&self, most: usize) -> Vec<u8> {
        let spare = self.buffers().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(most))
    }

    /// `bytes` to be read. Their memory comes back when the last of the readers is gone.
    pub(crate) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        let spare = self.clone();
        Bytes::from_owner(Lent { bytes, spare })
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    bytes: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.spare.buffers().push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer is filled again when its last reader is gone, and not before.
    #[test]
    fn buffers_come_back() {
        let spare = Spare::default();
        let filled = |value, count| {
            let mut bytes = spare.take(1000);
            assert!(bytes.is_empty());
            bytes.resize(count, value);
            spare.lend(bytes)
        };
        let first = filled(1, 300);
        let place = first.as_ptr();
        let part = first.slice(100..);
        drop(first);
        let second = filled(2, 400);
        assert_ne!(second.as_ptr(), place);
        assert_eq!(part[..], [1; 200]);
        drop(part);
        let third = filled(3, 20);
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 20][..]));
        assert_eq!(second[..], [2; 400]);
    }
}
