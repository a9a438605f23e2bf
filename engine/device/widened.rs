//! Rings of a session while a chunk is computed.

use std::ops::Range;

use crate::kernels::{DeviceError, Slice};

use crate::pass::Pass;
use crate::session::copy;

/// A ring of a session while a chunk is computed: the session's own for a single token, which overwrites nothing that it sees; otherwise one with
/// room for the chunk, that starts with the rows `live` and hands its last ones back.
pub(crate) struct Widened<'s> {
    pub(crate) bytes: Slice<'s, u8>,
    own: bool,
}

impl<'s> Widened<'s> {
    pub(crate) fn new(
        pass: &Pass<'s>,
        own: Slice<'s, u8>,
        row: usize,
        live: Range<u64>,
        slots: usize,
        tokens: usize,
    ) -> Result<Self, DeviceError> {
        if tokens == 1 {
            return Ok(Self {
                bytes: own,
                own: true,
            });
        }
        let bytes = pass.take(slots * row)?;
        copy(pass.device, live, row, own, bytes)?;
        Ok(Self { bytes, own: false })
    }

    pub(crate) fn hand_back(
        &self,
        pass: &Pass<'_>,
        own: Slice<'_, u8>,
        row: usize,
        last: Range<u64>,
    ) -> Result<(), DeviceError> {
        if self.own {
            Ok(())
        } else {
            copy(pass.device, last, row, self.bytes, own)
        }
    }
}
