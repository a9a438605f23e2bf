//! One pass through the layers: tokens of one session or of several, beside each other.

use std::ops::Range;

use ds4_kernels::ops::rope::{Rope, Rotation};

use crate::{Hidden, Kv};

/// Some tokens of one session, at the frontier of its KV: a chunk of a prompt, or the next token alone.
#[derive(Debug)]
pub struct Part<'a> {
    /// Token ids, in order.
    pub tokens: &'a [u32],
    /// Extended by the pass.
    pub kv: &'a mut Kv,
}

/// Runs `pass` over all tokens of the parts and their streams: together where they are at most `most`, else part by part, so many at a time.
///
/// # Errors
/// Those of `pass`; what went before has been computed.
pub fn in_passes<E>(
    most: usize,
    parts: &mut [Part<'_>],
    hidden: &mut Hidden,
    mut pass: impl FnMut(&mut [Part<'_>], &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let (tokens, width) = (hidden.tokens(), hidden.width());
    let mut streams = hidden.as_mut_slice();
    if tokens <= most {
        return pass(parts, streams);
    }
    for part in parts {
        for tokens in part.tokens.chunks(most) {
            let (chunk, rest) = streams.split_at_mut(tokens.len() * width);
            pass(&mut [Part { tokens, kv: part.kv }], chunk)?;
            streams = rest;
        }
    }
    Ok(())
}

/// All tokens of a pass in one row, part after part. Everything but the KV looks at this row alone.
#[derive(Debug)]
pub(crate) struct Pass<'a, 'kv> {
    pub(crate) parts: &'a mut [Part<'kv>],
    pub(crate) tokens: Vec<u32>,
    /// Position of each token in its session.
    pub(crate) positions: Vec<u64>,
    plain: Vec<Rotation>,
    compressed: Vec<Rotation>,
}

impl<'a, 'kv> Pass<'a, 'kv> {
    pub(crate) fn new(parts: &'a mut [Part<'kv>], plain: &Rope, compressed: &Rope) -> Self {
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let of_part = |part: &Part<'_>| (part.kv.frontier()..).take(part.tokens.len());
        let positions: Vec<u64> = parts.iter().flat_map(of_part).collect();
        let rotations = |rope: &Rope| positions.iter().map(|position| rope.at(*position)).collect();
        let (plain, compressed) = (rotations(plain), rotations(compressed));
        Self {
            parts,
            tokens,
            positions,
            plain,
            compressed,
        }
    }

    /// The rotation of each token, on layers with or without compression.
    pub(crate) fn rotations(&self, compressed: bool) -> &[Rotation] {
        if compressed { &self.compressed } else { &self.plain }
    }

    /// Where each part's tokens lie in the row.
    pub(crate) fn ranges(&self) -> Vec<Range<usize>> {
        let mut next = 0;
        let range = |part: &Part<'_>| {
            let first = next;
            next += part.tokens.len();
            first..next
        };
        self.parts.iter().map(range).collect()
    }

    /// Runs of at most `most` tokens of one part each, with the part's number.
    pub(crate) fn runs(&self, most: usize) -> Vec<(usize, Range<usize>)> {
        let split = |(part, range): (usize, Range<usize>)| {
            let starts = range.clone().step_by(most);
            starts.map(move |start| (part, start..range.end.min(start + most)))
        };
        self.ranges().into_iter().enumerate().flat_map(split).collect()
    }

    /// Forgets what no later token sees of `layer`, which has computed all tokens.
    pub(crate) fn trim(&mut self, layer: usize) {
        for part in self.parts.iter_mut() {
            let frontier = part.kv.frontier() + part.tokens.len() as u64;
            part.kv.trim(layer, frontier);
        }
    }

    /// All layers have computed all tokens.
    pub(crate) fn advance(self) {
        for part in self.parts {
            part.kv.advance(part.tokens);
        }
    }
}
