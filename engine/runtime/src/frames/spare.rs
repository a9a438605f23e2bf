//! Memory of frames that went out, filled again: fresh memory costs a fault for every page, and is in no cache.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers that nobody reads any more, the last one used first. Never more than were on the way at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    /// A copy of `data`. Its buffer comes back when the last of its readers is gone; a new one has room for `most` bytes.
    pub(crate) fn copy(&self, data: &[u8], most: usize) -> Bytes {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = spare.unwrap_or_else(|| Vec::with_capacity(most.max(data.len())));
        bytes.extend_from_slice(data);
        let spare = self.clone();
        Bytes::from_owner(Lent { bytes, spare })
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
        self.spare
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer is filled again when its last reader is gone, and not before.
    #[test]
    fn buffers_come_back() {
        let spare = Spare::default();
        let first = spare.copy(&[1; 300], 1000);
        let place = first.as_ptr();
        let part = first.slice(100..);
        drop(first);
        let second = spare.copy(&[2; 400], 1000);
        assert_ne!(second.as_ptr(), place);
        assert_eq!(part[..], [1; 200]);
        drop(part);
        let third = spare.copy(&[3; 20], 1000);
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 20][..]));
        assert_eq!(second[..], [2; 400]);
    }
}
