//! Tokens of one session in a pass.

use std::ops::Range;

use crate::kernels::{Device, DeviceError};
use ds4_gguf::ModelConfig;
use ds4_kernels::ops::rope::Rotation;
use ds4_model::Part;

use crate::session::Session;

/// Tokens of one session in the pass.
pub(crate) struct Chunk {
    /// Where they lie in the pass.
    pub(crate) range: Range<usize>,
    /// Position of the first.
    pub(crate) start: u64,
    /// Taken out of the KV until the pass has succeeded: what a failed pass has touched is made anew from the host's rows.
    pub(crate) session: Box<Session>,
}

impl Chunk {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.range.len() as u64
    }

    /// Groups of `ratio` tokens that the chunk completes.
    pub(crate) fn groups(&self, ratio: u64) -> Range<u64> {
        self.start / ratio..self.end() / ratio
    }
}

/// Those of all parts, one behind the other.
pub(crate) fn chunks(
    device: &Device,
    config: &ModelConfig,
    parts: &mut [Part<'_>],
) -> Result<Vec<Chunk>, DeviceError> {
    let mut next = 0;
    let chunk = |part: &mut Part<'_>| {
        let start = next;
        next += part.tokens.len();
        Ok(Chunk {
            range: start..next,
            start: part.kv.frontier(),
            session: Session::of(device, config, part.kv, part.tokens.len())?,
        })
    };
    parts.iter_mut().map(chunk).collect()
}

/// Rotations one behind the other.
pub(crate) fn flat(rotations: impl Iterator<Item = Rotation>) -> Vec<f32> {
    rotations.flat_map(|rotation| rotation.pairs().to_vec()).collect()
}

/// Positions are checked against 32 bits before a pass.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn narrow(position: u64) -> u32 {
    position as u32
}
