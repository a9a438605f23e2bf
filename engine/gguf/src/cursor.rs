//! Reading numbers and strings out of untrusted bytes. Every length is compared with what is left before it is used.

use crate::GgufError;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(crate) const fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) const fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    pub(crate) fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let taken = usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.left());
        let Some(length) = taken else {
            let (offset, left) = (self.offset as u64, self.left() as u64);
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                needed: length,
                offset,
                left,
            });
        };
        let bytes = &self.bytes[self.offset..self.offset + length];
        self.offset += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|error| GgufError::unexpected(what, "UTF-8 text", error))
    }

    /// A count of things that take at least `smallest` bytes each: refused when they cannot all be in the file.
    pub(crate) fn count(&mut self, smallest: u64, what: &str) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        let most = self.left() as u64 / smallest;
        if count > most {
            return Err(GgufError::unexpected(
                what,
                format!("at most {most} (what the file can hold)"),
                count,
            ));
        }
        usize::try_from(count).map_err(|_| GgufError::unexpected(what, "a count that fits memory", count))
    }
}
